"""The explorer in a notebook: the same module and stylesheet as the page, by anywidget."""

from __future__ import annotations

from typing import Any

from convfc.errors import ConvfcError, MissingDependencyError
from convfc.explorer.page import asset
from convfc.explorer.state import state_layer

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise MissingDependencyError(
        f"the package {error.name}, which shows the page in a notebook, is not installed",
        remedy="pip install 'convfc[explorer]'; or convfc explore, which needs no notebook",
    ) from error

__all__ = ["ExplorerWidget"]


class ExplorerWidget(anywidget.AnyWidget):
    """The page as a widget; its state and selection are traitlets, in both directions.

    Attributes
    ----------
    state : dict
        What the page shows: settings, numbers, selection; see `convfc.explorer.state`. Empty for
        the page's own start. A state that is no convolution is refused with a `TraitError`.
    selection : dict
        ``p`` (the row of M, the output position), ``f`` (the filter), ``q`` (the column of M) and
        ``element`` (of the input), the last two perhaps None.
    height : int
        In pixels; 0 for as high as the page is.

    Examples
    --------
    >>> widget = ExplorerWidget()
    >>> widget.selection
    {'p': 0, 'f': 0, 'q': None, 'element': None}
    """

    _esm = asset("explorer.js")
    _css = asset("explorer.css")

    state = traitlets.Dict().tag(sync=True)
    selection = traitlets.Dict({"p": 0, "f": 0, "q": None, "element": None}).tag(sync=True)
    height = traitlets.Int(0, min=0).tag(sync=True)

    @traitlets.validate("state")
    def _valid_state(self, proposal: Any) -> Any:
        if proposal["value"]:
            try:
                state_layer(proposal["value"])
            except ConvfcError as error:
                raise traitlets.TraitError(str(error)) from error
        return proposal["value"]

    @traitlets.validate("selection")
    def _valid_selection(self, proposal: Any) -> Any:
        value = dict(proposal["value"])
        unknown = set(value) - {"p", "f", "q", "element"}
        for name, chosen in value.items():
            whole = isinstance(chosen, int) and not isinstance(chosen, bool) and chosen >= 0
            if name not in unknown and not whole and not (chosen is None and name in "q element"):
                unknown.add(name)
        if unknown:
            raise traitlets.TraitError(
                f"selection: no such selection; expected whole numbers p, f, q and element; got "
                f"{', '.join(f'{name}={value[name]!r}' for name in sorted(unknown))}"
            )
        return value
