"""Methods for FC layers that now work on CONV layers, because each one is an FC layer.

============== ==================================================================================
`spectrum`     singular values of the whole layer, not of its reshaped kernel
============== ==================================================================================
"""
