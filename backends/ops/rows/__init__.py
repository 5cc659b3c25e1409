"""The rows of all ops, by kind of op."""
