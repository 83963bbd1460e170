"""Section 5 of Ma & Lu (2017): the CNN and the FC network, trained side by side and compared."""
