"""What all reports share: how numbers are written, and the page that needs no other file."""

from convfc.extras import needing

with needing():
    from convfc.reporting.page import write_report_files
    from convfc.reporting.text import escaped, listed, number, render, times

__all__ = ["escaped", "listed", "number", "render", "times", "write_report_files"]
