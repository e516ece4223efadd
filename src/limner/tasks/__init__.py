"""Floor 5: tasks. Each prepares x, a denoiser and times; none loops."""
