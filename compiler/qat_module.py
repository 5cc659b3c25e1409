"""What :func:`fxquant.prepare` returns for quantization-aware training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..passes.fake_quants import Simulation, add_as
from ..passes.simulated_layer import WeightFakeQuantize
from .errors import ConfigError, StateError, check_positive
from .fake_quantize import FakeQuantize
from .qat import Training

OURS = "fake_quants"
NEVER = -1


class FakeQuants(nn.Module):
    """The fake-quants of a model, and how far its training has come: all state that is not the model's own.

    Attributes:
        steps: forward passes in training so far.
        freeze_observers_at, freeze_batchnorm_at: the step from which on they are frozen; -1 is never.
        observers_frozen: whether they are.
    """

    steps: Tensor
    freeze_observers_at: Tensor
    freeze_batchnorm_at: Tensor
    observers_frozen: Tensor

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        for path, fake_quant in simulation.activations.items():
            if path not in simulation.known:
                add_as(self, path.replace(".", "_"), fake_quant)
        for path, layer in simulation.layers.items():
            if layer.rounds is not None:
                add_as(self, f"{path.replace('.', '_')}_weight", layer.rounds)
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("freeze_observers_at", torch.tensor(NEVER))
        self.register_buffer("freeze_batchnorm_at", torch.tensor(NEVER))
        self.register_buffer("observers_frozen", torch.tensor(0))
        self.register_load_state_dict_post_hook(_thaw_or_freeze)

    def extra_repr(self) -> str:
        frozen = {"scales": self.due(self.freeze_observers_at), "statistics": self.due(self.freeze_batchnorm_at)}
        return f"step {int(self.steps)}" + "".join(f", {what} frozen" for what, due in frozen.items() if due)

    def due(self, at: Tensor) -> bool:
        """Whether step ``at`` has come."""
        return NEVER < int(at) <= int(self.steps)


def _thaw_or_freeze(fake_quants: FakeQuants, incompatible: Any) -> None:
    for each in fake_quants.children():
        assert isinstance(each, FakeQuantize | WeightFakeQuantize)
        each.frozen = bool(fake_quants.observers_frozen)


class QATModule(nn.Module):
    """A model that trains through its int8 roundings: train it like the float one.

    Its modules, parameters and buffers are copies of the model's, under the model's names; what is added is in
    ``fake_quants``. A checkpoint of the float model loads into it, and ``float_state_dict()`` into the float model.
    :func:`fxquant.convert` makes it int8; it can be trained on afterwards.
    """

    fake_quants: FakeQuants
    _training: Training

    def __init__(self, training: Training, fake_quants: FakeQuants | None = None) -> None:
        super().__init__()
        tree = training.tree
        if any(OURS in names for names in (tree._modules, tree._parameters, tree._buffers)):
            raise ConfigError(f"The model has something named {OURS!r}, as fxquant names its own. Rename it.")
        if fake_quants is None:
            fake_quants = FakeQuants(training.simulation).train(tree.training)
        self.__dict__.update(
            _training=training,
            _parameters=tree._parameters,
            _buffers=tree._buffers,
            _non_persistent_buffers_set=tree._non_persistent_buffers_set,
            _modules={**tree._modules, OURS: fake_quants},
            training=tree.training,
        )
        self._links = _links(tree, training.work.gm)
        self.register_load_state_dict_pre_hook(_take_float_checkpoint)
        self.register_load_state_dict_post_hook(_link)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's forward takes and gives, with activations and weights rounded.

        In training mode, with gradients on, a call is a step: ranges follow, and schedules advance.

        Raises:
            TrainingError: an activation whose range is followed holds NaN or inf, or a learned scale left all bounds.
        """
        ours = self.fake_quants
        stepping = self.training and torch.is_grad_enabled()
        held = [n for n in self._norms() if n.training] if ours.due(ours.freeze_batchnorm_at) else []
        if stepping:
            self._freeze_if_due()
            ours.steps += 1
        for norm in held:
            norm.training = False
        try:
            result = self._training.work.gm(*args, **kwargs)
        finally:
            for norm in held:
                norm.training = True
        if stepping:
            self._agree()
        return result

    def train(self, mode: bool = True) -> QATModule:
        """As of any module: sets the mode of all of the model."""
        super().train(mode)
        # The model's own root is not this module: its class may have a train() of its own, and functions that its
        # forward calls ask it for the mode.
        self._training.tree.train(mode)
        return self

    def _freeze_if_due(self) -> None:
        ours = self.fake_quants
        if ours.due(ours.freeze_observers_at) and not ours.observers_frozen:
            self._training.simulation.freeze_observers()
            ours.observers_frozen.fill_(1)

    def _norms(self) -> Iterator[nn.Module]:
        return (m for m in self.modules() if isinstance(m, _BatchNorm))

    def _agree(self) -> None:
        """Make the ranges of all ranks the mean of theirs, as their gradients are."""
        fake_quants = self._training.simulation.activations.values()
        following = [f for f in fake_quants if f.joined[0].theta is None and not f.frozen]
        if following and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            ranges = torch.stack([f.range for f in following])
            dist.all_reduce(ranges)
            for fake_quant, mean in zip(following, ranges / dist.get_world_size(), strict=True):
                fake_quant.range.copy_(mean)

    def freeze_observers(self, after: float | None = None, steps: int | None = None) -> None:
        """Let the scales of activations and weights stay as they are: now, or from a step of training on; for good.

        Args:
            after: share of the ``steps`` of the whole training (calls in training mode), from 0 to 1.
            steps: their number.

        Raises:
            ConfigError: one is given without the other, or out of range.
        """
        self.fake_quants.freeze_observers_at.fill_(self._step(after, steps))
        self._freeze_if_due()

    def freeze_batchnorm(self, after: float | None = None, steps: int | None = None) -> None:
        """Let batch normalisations use and keep their running statistics; arguments as of :meth:`freeze_observers`.

        Their weights and biases go on training, and are folded into the layers before them as they will be in int8.
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
        """The part of ``state_dict()`` that is the model's own: what the float model loads."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith(f"{OURS}.")}

    @property
    def training_graph(self) -> fx.GraphModule:
        """The graph that trains."""
        return self._training.work.gm

    def _apply(self, fn: Any, recurse: bool = True) -> QATModule:
        super()._apply(fn, recurse)
        _link(self)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> QATModule:
        training = copy.deepcopy(self._training, memo)
        twin = type(self)(training, copy.deepcopy(self.fake_quants, memo))
        twin.training = self.training
        memo[id(self)] = twin
        return twin

    def __reduce__(self) -> Any:
        raise StateError(
            "A module in quantization-aware training cannot be pickled. Save its state_dict(); to resume, prepare the "
            "float model again in the same way, and load it."
        )


def _links(tree: nn.Module, gm: fx.GraphModule) -> list[tuple[dict[str, Any], str, str]]:
    """Where the graph keeps tensors of the tree outside of the tree's own modules, and what they are called there.

    It does for those that the forward reads by name, and for layers made of functions over parameters.
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
    """Let the graph read the tensors that the tree has now: some ways to load and to move replace them."""
    tree = module._training.tree
    for kept, leaf, name in module._links:
        owner, _, own = name.rpartition(".")
        kept[leaf] = getattr(tree.get_submodule(owner), own)


def _take_float_checkpoint(module: QATModule, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
    """A checkpoint without any state of ours is the float model's: what we have stays."""
    if not any(key.startswith(f"{prefix}{OURS}.") for key in state_dict):
        state_dict.update(module.fake_quants.state_dict(prefix=f"{prefix}{OURS}."))
