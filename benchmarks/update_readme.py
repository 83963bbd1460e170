"""Take the last run of ``bench_torch.py`` into the README: ``python benchmarks/update_readme.py``.

The tables of medians go between the README's two marks as the run wrote them, so that nobody types
in a result.
"""

from __future__ import annotations

import pathlib
import re

RESULTS = pathlib.Path(__file__).with_name("results") / "torch.md"
README = pathlib.Path(__file__).parents[1] / "README.md"
_BLOCK = re.compile(r"(?<=<!-- torch-speed:begin -->\n).*(?=<!-- torch-speed:end -->)", re.DOTALL)


def readme_block(results: str) -> str:
    """Return what the README shows of a run: where it was measured, and its medians."""
    origin, *sections = results.split("\n**")
    medians = [f"**{section.strip()}" for section in sections if "medians**" in section]
    return "\n\n".join([*medians, origin.strip(), ""])


def with_block(readme: str, block: str) -> str:
    """Return the README with this block between its two marks."""
    return _BLOCK.sub(lambda _: block, readme)


if __name__ == "__main__":
    block = readme_block(RESULTS.read_text("utf-8"))
    README.write_text(with_block(README.read_text("utf-8"), block), "utf-8")
