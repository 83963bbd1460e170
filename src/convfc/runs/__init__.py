"""Runs: an experiment in named parts, each done once, in a folder from which it goes on.

`study` says what an experiment is and runs it, `folder` keeps its files and other processes out,
`sealed` reads them back or says in one line what to remove, `progress` shows how far it is,
`reporting` writes what is said of it, and `machine` says what it was measured on.
"""
