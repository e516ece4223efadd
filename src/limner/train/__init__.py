"""Floor 5: training, from pictures with words to weights. One flat loop, four objectives."""
