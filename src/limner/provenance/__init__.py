"""Floor 6: where a picture comes from."""
