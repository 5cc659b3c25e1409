"""Backends: a table of ops each, and the lowering of frozen graphs."""
