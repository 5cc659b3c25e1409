"""Measured times."""
