"""Floor 5: files that are not opened here but in a process that can do nothing else."""
