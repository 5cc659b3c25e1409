"""Batch normalization of an input whose number of axes is not known."""

from __future__ import annotations

from torch import Tensor, nn


class AnyBatchNorm(nn.modules.batchnorm._BatchNorm):
    """``F.batch_norm`` as a module: of (N, C, ...), with any number of axes."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass
