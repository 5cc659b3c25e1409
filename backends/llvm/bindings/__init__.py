"""What this backend can do with each op."""
