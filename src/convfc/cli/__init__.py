"""The commands of ``convfc``, one file each; what they do is elsewhere."""

from convfc.extras import needing

with needing("cli", otherwise="'convfc[paper]' for the experiment as well"):
    from convfc.cli.commands import app

__all__ = ["app"]
