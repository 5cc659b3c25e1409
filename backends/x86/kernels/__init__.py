"""Candidates for each kind of call, on ``torch.ops.quantized`` and ``torch.ops.onednn``."""
