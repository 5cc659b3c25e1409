"""Rounding during quantization-aware training."""
