"""Take the last runs into the README: ``python benchmarks/update_readme.py``.

The medians of ``bench_torch.py``, and the depthwise layers of ``bench_tools.py``, go between the
README's two marks as the runs wrote them, so that nobody types in a result.
"""

from __future__ import annotations

import pathlib
import re

RESULTS = pathlib.Path(__file__).with_name("results")
README = pathlib.Path(__file__).parents[1] / "README.md"
_BLOCK = re.compile(r"(?<=<!-- torch-speed:begin -->\n).*(?=<!-- torch-speed:end -->)", re.DOTALL)


def readme_block(results: str, tools: str) -> str:
    """Return what the README shows of the two runs: medians, and where they were measured."""
    origin, *sections = results.split("\n**")
    medians = [f"**{section.strip()}" for section in sections if "medians**" in section]
    here, layers, *_ = tools.split("\n**")
    head, line, *rows = [row for row in layers.splitlines() if row.startswith("|")]
    table = [head, line, *(row for row in rows if "depthwise" in row)]
    title = "**Depthwise layers: time to the native layer's**"
    return "\n\n".join([*medians, origin.strip(), title, "\n".join(table), here.strip(), ""])


def with_block(readme: str, block: str) -> str:
    """Return the README with this block between its two marks."""
    return _BLOCK.sub(lambda _: block, readme)


if __name__ == "__main__":
    torch, tools = ((RESULTS / f"{name}.md").read_text("utf-8") for name in ("torch", "tools"))
    block = readme_block(torch, tools)
    README.write_text(with_block(README.read_text("utf-8"), block), "utf-8")
