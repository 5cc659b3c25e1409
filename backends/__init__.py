"""Backends: what each op means (``base``, ``ops``), and a folder per backend with what runs it."""
