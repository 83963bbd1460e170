"""The study of uncertainty: a network on digits, and five methods that say when it does not know.

============== ==================================================================================
`methods`      the network, and how each method changes and trains it
`parts`        trainings, predictions, and a drawn network taken back to CONV
`scores`       the table, and what its differences are worth
`findings`     what the report says
`figures`      what it shows
============== ==================================================================================
"""

from convfc.extras import needing

with needing("study"):
    from convfc.studies.uncertainty.study import SETTINGS, STUDY

__all__ = ["SETTINGS", "STUDY"]
