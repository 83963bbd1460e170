"""What every morph returns: the new network, the certificate, and what was done."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import nn

from convfc.certificate import Certificate
from convfc.frameworks.torch.morphism.certify import Change, certify

__all__ = ["Change", "Morph", "finish"]


@dataclass(frozen=True, eq=False)
class Morph:
    """A network that computes what another one computes, with other layers.

    Parameters
    ----------
    model : nn.Module
        The new network; the one that was given is as before.
    certificate : Certificate
        Whether the two compute the same function, measured on the example.
    what : str
        What was done where, as a sentence without its full stop.
    noise : float
        Relative standard deviation of the noise that was added to break symmetries; 0 for none.
    changed : tuple of str
        The places that changed.
    """

    model: nn.Module
    certificate: Certificate
    what: str
    noise: float = 0.0
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        noise = f"noise of {self.noise:g} of the weights' standard deviation was added"
        lines = (self.what + ".", *([f"Symmetry breaking: {noise}."] if self.noise else []))
        return "\n".join((*lines, str(self.certificate)))

    __repr__ = __str__


def finish(
    before: nn.Module,
    after: nn.Module,
    example: Any,
    changes: Sequence[Change],
    *,
    what: str,
    noise: float = 0.0,
    seed: int = 0,
    others: Mapping[str, str] = MappingProxyType({}),
    held: Collection[str] = (),
) -> Morph:
    """Return a morph with its certificate.

    Nothing is raised if the two networks are not the same function: the certificate then says no,
    and why.

    Parameters
    ----------
    before, after : nn.Module
        They share no part; both stay as they are.
    example : Tensor, tuple or mapping
        One input, or the positional or keyword arguments of a call.
    changes : sequence of Change
    what : str
        What was done where.
    noise : float
        Relative standard deviation of noise that was added.
    seed : int
        Of the integers that the layers are compared on.
    others : mapping
        Places of parts that have changed and cannot be compared by themselves, with the reasons.
    held : collection of str
        Names of parameters and buffers that have changed and belong to no layer.

    Returns
    -------
    Morph

    Examples
    --------
    >>> import copy, torch
    >>> before = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU())
    >>> after = copy.deepcopy(before)
    >>> change = Change("0", before[0], after[0], rebuild=copy.deepcopy)
    >>> morph = finish(before, after, torch.ones(1, 1, 5), [change], what="nothing was done")
    >>> morph.certificate.holds, morph.changed
    (True, ('0',))
    """
    certificate = certify(before, after, example, changes, seed=seed, others=others, held=held)
    places = tuple(dict.fromkeys([*(change.name for change in changes), *others, *held]))
    return Morph(after, certificate, what, noise, places)
