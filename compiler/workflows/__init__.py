"""The workflows: static, dynamic, quantization-aware training, mixed precision."""
