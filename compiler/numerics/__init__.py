"""Arithmetic of quantization: rounding, observers, ranges, fake-quantization, metrics."""
