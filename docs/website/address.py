"""Tell what is to be released where its site is: `python docs/website/address.py URL`.

The links of the README, which are those of files, become those of pages, since the README is also
read where those files are not; and pyproject.toml names the site, where *Link* of the explorer
leads. Both files are changed in place: this is for a release, not for a commit.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from website import ROOT, published


def with_site(readme: str, site: str) -> str:
    """Return the text with every link to a file of the repository as one to the site."""
    places = published()

    def link(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        return f"]({site}{places[target]}{anchor})" if target in places else found[0]

    return re.sub(r"\]\(([^)#\s]+)(#[^)\s]*)?\)", link, readme)


def main(url: str) -> None:
    """Change both files."""
    site = url.rstrip("/") + "/"
    if not re.fullmatch(r"https://[\w.-]+/(?:[\w./-]+/)?", site):
        raise SystemExit(f"no address of a site: expected https://HOST/..., got {url}")
    readme, project = ROOT / "README.md", ROOT / "pyproject.toml"
    readme.write_text(with_site(readme.read_text("utf-8"), site), "utf-8")
    text = project.read_text("utf-8")
    project.write_text(f'{text}\n[project.urls]\nDocumentation = "{site}"\n', "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
