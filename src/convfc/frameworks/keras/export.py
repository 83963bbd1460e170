"""Models of Keras as models of ONNX, by Keras's own exporter."""

from __future__ import annotations

import pathlib
import tempfile
import warnings
from typing import Any

from convfc.extras import needing

with needing():
    import keras

from convfc.comparing import words
from convfc.errors import UnsupportedModel
from convfc.frameworks.keras import models


def to_onnx(model: Any, example: Any) -> Any:
    """Return a model that runs on an example as an `onnx_ir.Model`; open sizes stay open."""
    with needing():
        import onnx
        import onnx_ir as ir
        import onnxscript  # noqa: F401
    models.run(model, example)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = pathlib.Path(folder, "model.onnx")
        try:
            model.export(path, format="onnx", verbose=False)
            return ir.from_proto(onnx.load(path))
        except Exception as error:  # of Keras, its backend and the exporter of that
            backend = keras.config.backend()
            raise UnsupportedModel(
                f"Keras does not export it from {backend} ({words(error)})",
                where="model",
                remedy="set KERAS_BACKEND=torch, for which Keras needs no other package"
                if backend != "torch"
                else "export it yourself with model.export, and convert the file",
            ) from error
