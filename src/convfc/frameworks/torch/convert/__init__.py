"""`to_fc` and `to_conv`: modules put in the places of others; optimizers that follow them."""
