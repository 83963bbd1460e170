"""``python -m convfc``, and the command ``convfc``."""

from __future__ import annotations

import sys

from convfc.errors import MissingDependencyError


def main() -> None:
    """Start the command line, or say which packages it needs."""
    try:
        from convfc.cli import app
    except MissingDependencyError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(1)
    from rich.console import Console

    from convfc.cli.common import errors_in_one_line

    with errors_in_one_line(Console(stderr=True)):
        app(prog_name="convfc")


if __name__ == "__main__":
    main()
