"""What `torch.compile` must not look into.

Imported only where a compiler is at work already: these decorators import it, which takes a second.
"""

from __future__ import annotations

from typing import Any

import torch

from convfc.frameworks.torch.forms.windows import Rule, open_rules
from convfc.frameworks.torch.read import geometry_from


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def constant_rules(attributes: tuple[Any, ...]) -> tuple[str, tuple[Rule, ...]]:
    """Return how a layer pads and reads, which a compiler takes as a constant."""
    return open_rules(geometry_from(*attributes))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def uncompiled(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what may do anything."""
    return function(*args, **kwargs)
