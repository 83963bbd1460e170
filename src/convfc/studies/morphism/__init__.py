"""The study of network morphism: how far a student gets that starts as its teacher.

============== ==================================================================================
`parts`        teachers, students, and what they are compared with
`findings`     what the report says
`figures`      what it shows
============== ==================================================================================
"""

from convfc.extras import needing

with needing("study"):
    from convfc.studies.morphism.study import SETTINGS, STUDY

__all__ = ["SETTINGS", "STUDY"]
