"""Keras computes on jax in every test, wherever it is imported first; its backend cannot change."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")
