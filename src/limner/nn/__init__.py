"""Floor 1: the layers that networks share. Imports torch and floor 0 only."""
