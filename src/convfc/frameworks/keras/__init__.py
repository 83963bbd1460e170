"""The room of Keras 3: its layers, its backend and precision, and the layers of the FC form.

============== ==================================================================================
`read`         what one of Keras's CONV layers computes, in convfc's own terms
`layers`       the layers of the FC form
`backend`      choosing a backend and a precision
============== ==================================================================================

Importing the room does not import Keras, because the choice of a backend has to come before that;
its functions are only called when the user has imported Keras.
"""
