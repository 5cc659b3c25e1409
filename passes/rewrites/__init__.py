"""Rewrites of float graphs."""
