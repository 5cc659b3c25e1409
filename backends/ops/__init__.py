"""What each op means, for all backends."""
