"""All rules by the name of the op."""

from __future__ import annotations

from collections.abc import Mapping

from . import copies, dynamic, embedding, norms, pointwise, pools, products, recurrent, shapes, weighted
from .rule import Rule

RULES: Mapping[str, Rule] = {
    **weighted.RULES,
    **pointwise.RULES,
    **shapes.RULES,
    **copies.RULES,
    **pools.RULES,
    **norms.RULES,
    **products.RULES,
}

# By op, of layers with rounded weights. Recurrent layers and embeddings in fp32 run by the same rules.
RECURRENT = {
    **dict.fromkeys(("lstm", "gru", "rnn"), recurrent.recurrent),
    **dict.fromkeys(("lstmcell", "grucell", "rnncell"), recurrent.cell),
}
CONVOLUTIONS = dict.fromkeys(("conv1d", "conv2d", "conv3d"), dynamic.convolution)
EMBEDDINGS = {"embedding": embedding.embedding, "embedding_bag": embedding.embedding_bag}
DYNAMIC = {"linear": dynamic.linear, **CONVOLUTIONS, **RECURRENT, **EMBEDDINGS}
