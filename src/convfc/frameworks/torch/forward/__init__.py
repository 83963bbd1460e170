"""How the patch form computes: windows of the input, blocks of M, products, memory formats."""
