"""What a compilation was asked to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...backends.base.backend import Backend, Target
from ...backends.registry import DEFAULT, create_backend
from ...passes.runner import PassRunner, Probe
from ..capture.capture import Leaf
from ..core.config import QuantConfig
from ..core.errors import ConfigError
from ..core.messages import shown
from ..core.overrides import WHOLE, Part
from ..execution.sample import Batch

CALIBRATION_BATCHES = 32


@dataclass(frozen=True)
class Options:
    """What a compilation was asked to do.

    Attributes:
        backend: what lowers the program.
        config: how to quantize.
        leaf_modules: modules that are kept whole.
        part: which part of the user's model is compiled.
        snapshots: keep the text of the graph after every step.
        debug: check the contract of every pass.
        example: a call that a dynamic model is captured with, if plain tracing does not do.
        probe: called after every step with its name and the graph.

    Raises:
        ConfigError: an option has the wrong type.
    """

    backend: Backend
    config: QuantConfig
    leaf_modules: Sequence[Leaf] = ()
    part: Part = WHOLE
    snapshots: bool = False
    debug: bool = False
    example: Batch | None = None
    probe: Probe | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.config, QuantConfig):
            raise ConfigError(f"config must be a QuantConfig, got {type(self.config).__name__}.")
        for name in ("snapshots", "debug"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {shown(getattr(self, name))}; it must be True or False.")

    @staticmethod
    def of(
        config: QuantConfig | None,
        backend: str = DEFAULT,
        target: Target | None = None,
        executor: str = "auto",
        **others: Any,
    ) -> Options:
        """Options from the arguments of a public function.

        Raises:
            ConfigError: one of them is not valid.
        """
        return Options(create_backend(backend, target, executor), QuantConfig() if config is None else config, **others)

    def new_runner(self) -> PassRunner:
        """What runs the passes of one compilation."""
        return PassRunner(self.debug, self.snapshots, self.probe)
