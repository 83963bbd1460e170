"""The places of a model: chosen by ``where=``, refused or listed, and what layers go on sharing.

A layer is any framework's; a place is its name in the model, and the model itself has none.
"""

from __future__ import annotations

import fnmatch
import sys
import warnings
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

from convfc.errors import (
    ArgumentError,
    NothingToConvert,
    Refusal,
    UnsupportedLayer,
    UnsupportedLayerWarning,
)

_Made = TypeVar("_Made")

Chosen: TypeAlias = Callable[[str, Any], bool]
"""Whether a layer is chosen, by its name and the layer itself."""
Where: TypeAlias = Chosen | str | Collection[str] | None
"""Which layers: a function of name and layer, or names with ``*`` as in a shell; None is all."""


def walk(model: Any, children: Callable[[Any], Mapping[str, Any]]) -> dict[str, Any]:
    """Return every place of a model that holds a part: a shared one stands at several."""

    def below(part: Any, name: str) -> Iterator[tuple[str, Any]]:
        yield name, part
        for key, child in children(part).items():
            yield from below(child, f"{name}.{key}" if name else key)

    return dict(below(model, ""))


def selector(where: Where) -> Chosen:
    """Return ``where`` as a function of a name and a module."""
    if where is None:
        return lambda name, module: True
    if callable(where):
        return where
    patterns = [where] if isinstance(where, str) else list(where)
    return lambda name, module: any(fnmatch.fnmatchcase(name, p) for p in patterns)


def refused(found: Mapping[str, Refusal | None]) -> dict[str, Refusal]:
    """Return, by place, why something cannot be done, where it cannot."""
    return {name: refusal for name, refusal in found.items() if refusal is not None}


def refuse_or_list(left: Mapping[str, Refusal], consequence: str, *, strict: bool) -> None:
    """Raise for the places that cannot be converted or, if not strict, list them in a warning."""
    if not left:
        return
    if not strict:
        listed = "; ".join(
            f"{place_in_words(name)} ({reason})" for name, (reason, *_) in left.items()
        )
        warn(f"left as they are: {listed}")
        return
    name, first = next(iter(left.items()))
    others = [place_in_words(place) for place in left][1:]
    raise first._replace(
        where=place_in_words(name), remedy=f"{first.remedy}; or leave it as it is with strict=False"
    ).error(
        UnsupportedLayer, f"it {consequence}" + (f" (nor can {some_of(others)})" if others else "")
    )


def warn(what: str) -> None:
    """Warn of layers; the line that is shown is the user's, who called a verb of convfc."""
    frame, level = sys._getframe(1), 2
    inside = ("convfc.", "torch.utils._contextlib")  # what decorates a verb is not the user
    while frame.f_back is not None and f"{frame.f_globals.get('__name__')}.".startswith(inside):
        frame, level = frame.f_back, level + 1
    warnings.warn(what, UnsupportedLayerWarning, stacklevel=level)


def nothing_to_convert(what: str, where: Where, there: Iterable[str]) -> NothingToConvert:
    """Return the error of a verb that finds nothing to convert: it is the same for all of them.

    ``what`` is not there, as in "CONV layer"; ``there`` are the places that ``where`` could name.
    """
    if where is None:
        return NothingToConvert(
            f"the model has no {what}",
            where="model",
            remedy="convfc.inspect(model) lists its CONV layers; convfc.to_conv takes back what "
            "convfc has made",
        )
    names = [place_in_words(name) for name in there]
    return NothingToConvert(
        f"where= selects no {what}",
        where="where",
        expected=f"at least one of {some_of(names)}" if names else None,
        got=where if isinstance(where, str) else None,
        remedy="give names as in model.named_modules()",
    )


def check_as_a_whole(where: Where, *, inplace: bool) -> None:
    """Refuse a part of a simplified network, and one that is to stay the same object."""
    for name, given in (("inplace", inplace), ("where", where is not None)):
        if given:
            raise ArgumentError(
                "a simplified network goes back as a whole, and becomes another object",
                where=name,
                remedy=f"leave out {name}=",
            )


def tied(who: str, holder: str) -> Refusal:
    """Return why a weight that something else holds cannot be converted, and the way out."""
    return Refusal(
        f"{who} is also a parameter of {holder}, which stays as it is",
        "convert both or neither (where=), or untie them",
    )


class Shared:
    """What is made anew, once for all that it is made of: what shared a source goes on sharing."""

    def __init__(self) -> None:
        # The sources are kept with what was made, so that no other object gets one of their ids.
        self._made: dict[Hashable, tuple[tuple[object, ...], Any]] = {}

    def __call__(
        self, sources: Iterable[object], key: Hashable, make: Callable[[], _Made]
    ) -> _Made:
        """Return what was made of these very sources under this key, or make it."""
        sources = tuple(sources)
        whole = (*map(id, sources), key)
        if whole not in self._made:
            self._made[whole] = sources, make()
        made: _Made = self._made[whole][1]
        return made


def place_in_words(name: str) -> str:
    """Return a name as messages have it."""
    return name or "the model itself"


def some_of(names: Collection[str], most: int = 10) -> str:
    """Return the first names of a list in words."""
    shown = ", ".join(list(names)[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
