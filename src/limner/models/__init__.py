"""Floor 2: one file a network. No file is read here and no device is named."""
