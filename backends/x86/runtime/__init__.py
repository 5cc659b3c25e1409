"""What compiled graphs need while they run."""
