"""Studies: what the methods do for a network, trained and measured on real digits.

``convfc reproduce --study NAME`` runs one of the `catalogue`, writes figures and a report, and goes
on where it was interrupted. Written for PyTorch; nothing here is imported before a study is asked
for. `images` and `torch_training` are what the studies share.
"""
