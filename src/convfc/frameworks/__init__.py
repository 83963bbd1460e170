"""One room per framework; a room imports its framework, importing this package imports none."""
