"""Floor 2: weight files and the names in them."""
