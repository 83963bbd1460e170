"""The commands of ``convfc``, one file each; what they do is elsewhere."""

from convfc.errors import MissingDependencyError

try:
    from convfc.cli.commands import app
except MissingDependencyError:
    raise
except ImportError as error:
    if (error.name or "").partition(".")[0] not in ("typer", "rich"):
        raise
    raise MissingDependencyError(
        f"the command line needs the package {error.name}, which is not installed",
        remedy="pip install 'convfc[cli]', or 'convfc[paper]' for the experiment as well",
    ) from error

__all__ = ["app"]
