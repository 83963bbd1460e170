"""The explorer in a notebook: the same module and stylesheet as the page, by anywidget."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from convfc.errors import ConvfcError, DataError
from convfc.explorer.page import asset
from convfc.explorer.state import check_selection, geometry_of_settings, state_layer
from convfc.extras import needing

with needing(otherwise="convfc explore, which needs no notebook"):
    import anywidget
    import traitlets


_NOTHING = {"p": 0, "f": 0, "q": None, "element": None}


class ExplorerWidget(anywidget.AnyWidget):
    """The page as a widget. A wrong state or selection is refused with a `TraitError`."""

    _esm = asset("explorer.js")
    _css = asset("explorer.css")

    state = traitlets.Dict().tag(sync=True)
    """Settings, numbers, selection (`convfc.explorer.state`); empty for the page's own start."""
    selection = traitlets.Dict(_NOTHING).tag(sync=True)
    """p (row of M), f (filter), q (column of M) and element (of the input), these perhaps None."""
    height = traitlets.Int(0, min=0).tag(sync=True)
    """In pixels; 0 for as high as the page is."""

    @traitlets.validate("state")
    def _valid_state(self, proposal: Any) -> Any:
        value = proposal["value"]
        if value:
            with _explained():
                value = self._within(value)
                state_layer(value)
        return value

    @traitlets.validate("selection")
    def _valid_selection(self, proposal: Any) -> Any:
        value = {**_NOTHING, **proposal["value"]}
        with _explained():
            check_selection(value, *self._known())
        return value

    @traitlets.observe("state")
    def _follow(self, change: Any) -> None:
        """Select what a new state selects: the page does so, too."""
        self.selection = {**_NOTHING, **(change["new"].get("selection") or {})}

    def _within(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state without a selection that it has from the present one and has no room for.

        ``widget.state = {**widget.state, "settings": ...}`` is about the settings.
        """
        selection, settings = state.get("selection"), state.get("settings")
        if not selection or not settings or selection != self.state.get("selection"):
            return state
        try:
            check_selection(selection, *geometry_of_settings(settings)[:2])
        except DataError:
            return {**state, "selection": _NOTHING}
        return state

    def _known(self) -> tuple[Any, ...]:
        """Return the geometry and the input size, if the page has told them."""
        return geometry_of_settings(self.state["settings"])[:2] if self.state else ()

    def __repr__(self) -> str:
        """Say what is shown, and where."""
        shown = (self.state.get("title") or "a layer") if self.state else "a small picture"
        shown += ", changed on the page" if self.state.get("given") else ""
        return (
            f"<convfc explorer of {shown}: the last line of a notebook's cell shows it; outside of "
            "notebooks, convfc explore opens the page>"
        )


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn what convfc refuses into what traitlets expects."""
    try:
        yield
    except ConvfcError as error:
        raise traitlets.TraitError(str(error)) from error
