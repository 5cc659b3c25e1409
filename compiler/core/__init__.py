"""Errors, configuration, quantization parameters: what every room uses."""
