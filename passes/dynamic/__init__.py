"""Layers with int8 or fp16 weights that take and give fp32."""
