"""Floor 2: paths, times, samplers and guidance. Imports torch and floor 0 only, so that a toy can test it."""
