"""Optimizers and first weights, which are those of Keras: what they are called, their numbers."""

OPTIMIZERS = ("sgd", "adam")
"""The paper's, which are taken where none is named."""
LEARNING_RATES = {
    "sgd": 0.01,
    "momentum": 0.01,
    "adam": 0.001,
    "adamw": 0.001,
    "rmsprop": 0.001,
    "muon": 0.001,
}
TITLES = {
    "sgd": "SGD",
    "momentum": "SGD with momentum",
    "adam": "Adam",
    "adamw": "AdamW",
    "rmsprop": "RMSprop",
    "muon": "Muon",
}
"""What the optimizers are called, which are those of Keras."""
MOMENTUM = 0.9
EPSILON = 1e-7  # Keras's own
WITH_EPSILON = ("adam", "adamw", "rmsprop")
INITIALIZERS = {
    "he_uniform": "He uniform",
    "he_normal": "He normal",
    "glorot_uniform": "Glorot uniform",
    "glorot_normal": "Glorot normal",
    "lecun_uniform": "LeCun uniform",
    "lecun_normal": "LeCun normal",
}
"""What first weights are drawn from, the paper's first."""
INITIALIZER = next(iter(INITIALIZERS))
