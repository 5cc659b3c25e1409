"""Generators of kernels: each is a description of shapes that emits its code."""
