"""Plain FC layers to CONV layers: a classifier's head becomes a map of scores."""
