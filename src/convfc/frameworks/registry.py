"""Finds the room of the framework that a model belongs to, without importing any framework.

A user's object can only belong to a framework that is already imported, so ``sys.modules`` says
which rooms may be asked.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from convfc.errors import UnsupportedModel

__all__ = ["ROOMS", "room_of"]

ROOMS = {"torch": "convfc.frameworks.torch"}
"""Framework, as ``sys.modules`` names it, and its room; asked in this order."""


def room_of(model: object, where: str = "model") -> ModuleType:
    """Return the room that owns a model.

    Parameters
    ----------
    model : object
    where : str
        The argument's name, for the message.

    Raises
    ------
    UnsupportedModel
        If no room owns it.

    Examples
    --------
    >>> import torch
    >>> room_of(torch.nn.ReLU()).__name__
    'convfc.frameworks.torch'
    """
    for framework, room in ROOMS.items():
        if framework in sys.modules:
            module = importlib.import_module(room)
            if module.owns(model):
                return module
    raise UnsupportedModel(
        "this is not a model that convfc knows",
        where=where,
        expected="a torch.nn.Module",
        got=type(model).__name__,
        remedy="give the model object itself, not its class, its file or its state dict",
    )
