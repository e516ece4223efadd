"""Tables of names: how each published layout calls the weights that ours call by the original names."""
