"""The room of Keras 3: choosing its backend and precision, and the layers of the FC form.

``backend`` can be imported without importing Keras, because the choice of a backend has to come
before Keras; ``layers`` imports it.
"""
