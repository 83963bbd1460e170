"""How the text of a report is made from its template: numbers, ratios and lists in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jinja2

__all__ = ["escaped", "listed", "number", "render", "times"]

# An underscore inside a word, as in x86_64, means nothing to Markdown.
_MARKS = re.compile(r"[\\`*\[\]<>|&]|(?<!\w)_|_(?!\w)")


def escaped(value: Any) -> Any:
    """Return what a file holds with all its texts such that Markdown shows them as they are.

    A file may come from somebody else, and a text in it shall be neither an image nor a link.

    Parameters
    ----------
    value : object
        What JSON can hold; keys are escaped as well.

    Examples
    --------
    >>> escaped({"machine": ["Linux x86_64", "![a](../b.png)"]})
    {'machine': ['Linux x86_64', '!&#91;a&#93;(../b.png)']}
    """
    if isinstance(value, str):
        # As entities: a backslash would be one more character where a list is shown.
        return _MARKS.sub(lambda mark: f"&#{ord(mark[0])};", " ".join(value.split()))
    if isinstance(value, Mapping):
        return {escaped(key): escaped(each) for key, each in value.items()}
    if isinstance(value, list):
        return [escaped(each) for each in value]
    return value


def render(template: str, values: Mapping[str, Any]) -> str:
    """Fill in a Markdown template; what it asks for and is not there is an error.

    Parameters
    ----------
    template : str
        Jinja2, with the filters ``number``, ``times``, ``listed`` and ``epochs``.
    values : mapping
        What the template may use.

    Returns
    -------
    str
        Markdown.

    Examples
    --------
    >>> render("{{ n | epochs }}: {{ gap | number }}", {"n": 1, "gap": 1.8512e-6})
    '1 epoch: 1.85e-6'
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - this is Markdown; the page escapes what it is given
    )
    environment.filters |= {
        "number": number,
        "times": times,
        "listed": listed,
        "epochs": lambda count: f"{count} epoch" if count == 1 else f"{count} epochs",
    }
    return environment.from_string(template).render(values)


def number(value: float) -> str:
    """Write a number with three digits, as the paper does.

    Examples
    --------
    >>> [number(value) for value in (0, 1e-6, 1.8512e-6, 0.0742, 12, 31622.8, 536870912)]
    ['0', '1e-6', '1.85e-6', '0.0742', '12', '31,600', '5.37e8']
    """
    if 1e3 <= abs(value) < 1e6:
        return f"{float(f'{value:.3g}'):,.0f}"
    digits, _, power = f"{value:.3g}".partition("e")
    return f"{digits}e{int(power)}" if power else digits


def times(value: float) -> str:
    """Write a ratio.

    Examples
    --------
    >>> times(31622.8)
    '31,600 times'
    """
    return f"{number(value)} times"


def listed(values: Mapping[str, Any] | str) -> str:
    """Write the versions of packages, or the description of a machine, in one line.

    Examples
    --------
    >>> listed({"python": "3.12.1", "keras": "3.15.0"})
    'python 3.12.1, keras 3.15.0'
    >>> listed({"processor": "some CPU", "cores": 2, "system": "Linux x86_64"})
    'some CPU, 2 cores, Linux x86_64'
    """
    if isinstance(values, str):
        return values
    if "processor" in values:
        cores = f"{values.get('cores')} cores"
        return ", ".join([values["processor"], cores, str(values.get("system"))])
    return ", ".join(f"{name} {value}" for name, value in values.items())
