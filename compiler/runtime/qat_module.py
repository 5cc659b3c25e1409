"""What :func:`fxquant.prepare` returns for quantization-aware training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...passes.training.reestimate import reestimate
from ..core.errors import ConfigError, StateError
from ..core.interrupts import held
from ..core.markers import InTraining
from ..core.messages import check_positive
from ..execution.sample import copy_batch
from ..workflows.qat import TrainingModel
from ..workflows.static import at_once
from .fake_quants import OURS, FakeQuants
from .recent_batches import RecentBatches


class QATModule(nn.Module, InTraining):
    """A model that trains through its int8 roundings: train it like the float model.

    Its modules, parameters and buffers are copies of the model's, with the same names; everything that is added is in
    ``fake_quants``. A checkpoint of the float model loads into it, and ``float_state_dict()`` into the float model.
    :func:`fxquant.convert` makes it int8; it can be trained further afterwards.
    """

    fake_quants: FakeQuants
    training_model: TrainingModel

    def __init__(self, model: TrainingModel, fake_quants: FakeQuants | None = None) -> None:
        super().__init__()
        tree = model.tree
        if any(OURS in names for names in (tree._modules, tree._parameters, tree._buffers)):
            raise ConfigError(f"The model has an attribute {OURS!r}, a name that fxquant needs. Rename it.")
        if fake_quants is None:
            fake_quants = FakeQuants(model.simulation).train(tree.training)
        self.__dict__.update(
            training_model=model,
            _parameters=tree._parameters,
            _buffers=tree._buffers,
            _non_persistent_buffers_set=tree._non_persistent_buffers_set,
            _modules={**tree._modules, OURS: fake_quants},
            training=tree.training,
        )
        self._links = _links(tree, model.prepared.gm)
        self._recent = RecentBatches(at_once(model.prepared))
        self.register_load_state_dict_pre_hook(_before_loading)
        self.register_load_state_dict_post_hook(_link)

    @held
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Same arguments and results as the model's forward(), with activations and weights rounded.

        In training mode, with gradients on, a call is a step: ranges follow the values, and schedules advance.

        Raises:
            TrainingError: an activation whose range follows its values holds NaN or inf, or a learned scale diverged.
        """
        ours = self.fake_quants
        stepping = self.training and torch.is_grad_enabled()
        held = [n for n in self._norms() if n.training] if ours.due(ours.freeze_batchnorm_at) else []
        if stepping:
            self._freeze_if_due()
            ours.steps += 1
        norms = {n for n in self._norms() if n.training and n.momentum != 0} if stepping and not held else set()
        batch = copy_batch((args, kwargs)) if norms else None
        for norm in held:
            norm.training = False
        try:
            result = self.training_model.prepared.gm(*args, **kwargs)
        finally:
            for norm in held:
                norm.training = True
        if batch is not None:
            self._recent.add(batch, norms)
        if stepping:
            self._agree()
        return result

    def train(self, mode: bool = True) -> QATModule:
        """Set the mode of the whole model, as of any module."""
        super().train(mode)
        # The root of the model is another module: its class may have its own train(), and its forward() may ask for
        # the mode.
        self.training_model.tree.train(mode)
        if not mode:
            self._reestimate()
        return self

    @held
    def _reestimate(self) -> None:
        """Let the statistics of batch normalizations fit the weights as they are now, on the last batches."""
        prepared, ours = self.training_model.prepared, self.fake_quants
        batches, norms = self._recent.taken()
        if batches and not ours.due(ours.freeze_batchnorm_at):
            reestimate(prepared.gm, batches, norms)

    def _freeze_if_due(self) -> None:
        ours = self.fake_quants
        if ours.due(ours.freeze_observers_at) and not ours.observers_frozen:
            self.training_model.simulation.freeze_observers()
            ours.observers_frozen.fill_(1)

    def _norms(self) -> Iterator[_BatchNorm]:
        return (m for m in self.modules() if isinstance(m, _BatchNorm))

    def _agree(self) -> None:
        """Set the ranges of all ranks to their mean, as DistributedDataParallel does with gradients."""
        fake_quants = self.training_model.simulation.activations.values()
        following = [f for f in fake_quants if f.joined[0].theta is None and not f.frozen]
        if following and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            ranges = torch.stack([f.range for f in following])
            dist.all_reduce(ranges)
            for fake_quant, mean in zip(following, ranges / dist.get_world_size(), strict=True):
                fake_quant.range.copy_(mean)

    def freeze_observers(self, after: float | None = None, steps: int | None = None) -> None:
        """Keep the scales of activations and weights as they are, from now on or from a later step on.

        Args:
            after: the share of the ``steps`` of the whole training, from 0 to 1, after which they are frozen.
            steps: the number of steps (calls in training mode) of the whole training.

        Raises:
            ConfigError: one is given without the other, or out of range.
        """
        self.fake_quants.freeze_observers_at.fill_(self._step(after, steps))
        self._freeze_if_due()

    def freeze_batchnorm(self, after: float | None = None, steps: int | None = None) -> None:
        """Let batch normalizations use their running statistics, and not change them.

        Their weights and biases are still trained, and folded into the layers before them as in int8. Arguments and
        errors as of :meth:`freeze_observers`.
        """
        self.fake_quants.freeze_batchnorm_at.fill_(self._step(after, steps))

    def _step(self, after: float | None, steps: int | None) -> int:
        if after is None and steps is None:
            return int(self.fake_quants.steps)
        if after is None or steps is None:
            raise ConfigError("after= is a share of steps=, the number of training steps: give both, or neither.")
        if isinstance(after, bool) or not isinstance(after, int | float) or not 0 <= after <= 1:
            raise ConfigError(f"after is {after!r}; it must be a number from 0 to 1, a share of the steps.")
        check_positive("steps", steps)
        return round(after * steps)

    def float_state_dict(self) -> dict[str, Tensor]:
        """The part of ``state_dict()`` that the float model loads."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith(f"{OURS}.")}

    @property
    def training_graph(self) -> fx.GraphModule:
        """The graph that trains."""
        return self.training_model.prepared.gm

    def _apply(self, fn: Any, recurse: bool = True) -> QATModule:
        super()._apply(fn, recurse)
        _link(self)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> QATModule:
        model = copy.deepcopy(self.training_model, memo)
        copied = type(self)(model, copy.deepcopy(self.fake_quants, memo))
        copied.training = self.training
        copied._recent = copy.deepcopy(self._recent, memo)
        memo[id(self)] = copied
        return copied

    def __reduce__(self) -> Any:
        raise StateError(
            "A module in quantization-aware training cannot be pickled. Save its state_dict(). To resume, prepare the "
            "float model again in the same way, and load the state_dict."
        )


def _links(tree: nn.Module, gm: fx.GraphModule) -> list[tuple[dict[str, Any], str, str]]:
    """The places where the graph holds tensors of the tree outside of the modules of the tree, and their names there.

    These are tensors that forward() reads by name, and those of layers made of functions over parameters.
    """
    own = {id(module) for module in tree.modules()}
    names = {id(t): n for n, t in (*tree.named_parameters(), *tree.named_buffers())}
    return [
        (kept, leaf, names[id(tensor)])
        for module in gm.modules()
        if id(module) not in own
        for kept in (module._parameters, module._buffers)
        for leaf, tensor in kept.items()
        if id(tensor) in names
    ]


def _link(module: QATModule, incompatible: Any = None) -> None:
    """Let the graph read the present tensors of the tree: some ways to load and to move a model replace them."""
    tree = module.training_model.tree
    for kept, leaf, name in module._links:
        owner, _, own = name.rpartition(".")
        kept[leaf] = getattr(tree.get_submodule(owner), own)


def _before_loading(module: QATModule, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
    """Statistics come with the checkpoint. One without fake-quants is of the float model: ours stay as they are."""
    module._recent.clear()
    if not any(key.startswith(f"{prefix}{OURS}.") for key in state_dict):
        state_dict.update(module.fake_quants.state_dict(prefix=f"{prefix}{OURS}."))
