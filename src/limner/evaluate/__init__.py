"""Floor 5: figures of a model, of its baselines and of real pictures, side by side."""
