"""The choice of kernels by measuring."""
