"""Studies: what the methods do for a network, trained and measured on real digits.

``convfc reproduce --study NAME`` runs one, writes figures and a report, and goes on where it was
interrupted. Written for PyTorch; nothing here is imported before a study is asked for.

================ ================================================================================
`catalogue`      which studies there are
`images`         digits with labels, letters that are none, digits turned and moved
`torch_training` one training, which resumes to the bit
`uncertainty`    five ways to know when a network does not know
`morphism`       a student that starts where its teacher ended
================ ================================================================================
"""
