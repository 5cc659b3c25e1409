"""Which class runs a dynamic layer that is called by itself."""

from __future__ import annotations

from ...base.dynamic_layer import DynamicLayer
from ...base.dynamic_spec import DynamicSpec
from ..codegen.isa import Isa
from .planned_embedding import PlannedEmbedding
from .planned_layer import PlannedLayer, PlannedRecurrent


def planned_layer(spec: DynamicSpec, isa: Isa) -> DynamicLayer:
    """The layer of a specification."""
    if spec.op in ("embedding", "embedding_bag"):
        return PlannedEmbedding(spec, isa)
    return PlannedRecurrent(spec, isa) if hasattr(spec.layer, "hidden_size") else PlannedLayer(spec, isa)
