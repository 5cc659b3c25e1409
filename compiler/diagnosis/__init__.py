"""Where a model loses accuracy."""
