"""Analyses: they change no graph."""
