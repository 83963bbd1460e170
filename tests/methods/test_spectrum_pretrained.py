"""Singular values of layers with the weights that their authors trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN
from scipy.sparse.linalg import svds
from skimage import data
from torch import nn

from convfc import conv_matrix
from convfc.methods.spectrum import layer_spectra

LAYERS = {"conv1": (48, 48), "conv2": (23, 23), "conv3": (10, 10), "conv4": (4, 4)}


@pytest.fixture(scope="module")
def face_net() -> nn.Module:
    """The last of MTCNN's networks, which says where eyes, nose and mouth are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
        return MTCNN().onet


@pytest.fixture(scope="module")
def face() -> torch.Tensor:
    """The astronaut's face, (1, 3, 48, 48), as the network takes it."""
    image = torch.from_numpy(data.astronaut()[60:180:2, 170:290:2][:48, :48].copy())
    return ((image.float() - 127.5) / 128).permute(2, 0, 1).unsqueeze(0)


def test_the_norms_are_those_that_scipy_finds_with_the_matrix(
    face_net: nn.Module, face: torch.Tensor
):
    """Without padding A is some rows of the periodic operator: it cannot stretch further."""
    layers = ("conv3", "conv4")
    spectra = {s.name: s for s in layer_spectra(face_net, face, layers=layers, tolerance=1e-6)}
    assert tuple(spectra) == layers
    for name, found in spectra.items():
        A = conv_matrix(getattr(face_net, name), LAYERS[name]).astype(float)
        start = np.ones(min(A.shape))
        norm = svds(A, k=1, v0=start, return_singular_vectors=False, tol=1e-12)[0]
        # The residual bounds the distance to a singular value (Weyl), and Lanczos stays below.
        assert abs(found.norm - norm) <= found.own.residual * norm
        assert found.norm <= found.circular.values[0] * (1 + found.circular.residual)
        assert found.norm > 1.4 * found.own.reshaped_norm
