"""Compiling LLVM IR to object code, and loading it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

import llvmlite.binding as llvm

from .cpu import Cpu

_LOCK = threading.Lock()
_NAMES = itertools.count()


@cache
def _lljit() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.create_lljit_compiler()


def _machine(cpu: Cpu) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=cpu.name, features=cpu.features, opt=2, codemodel="jitdefault", jit=True
    )


def compile_ir(text: str, cpu: Cpu, assembly: bool = False) -> Any:
    """The object code of a module; as text of the assembler if asked for."""
    with _LOCK:
        machine = _machine(cpu)
        module = llvm.parse_assembly(text)
        module.triple, module.data_layout = llvm.get_process_triple(), str(machine.target_data)
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        # Kernels are vectorized and unrolled as they are written.
        options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
        passes = llvm.create_pass_builder(machine, options)
        passes.getModulePassManager().run(module, passes)
        return machine.emit_assembly(module) if assembly else machine.emit_object(module)


class Library:
    """Object code in memory, as long as this lives.

    Args:
        objects: object code by the name of the function that it has.
    """

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        builder = llvm.JITLibraryBuilder()
        for name, code in objects.items():
            builder.add_object_img(code).export_symbol(name)
        with _LOCK:
            self._tracker = builder.link(_lljit(), f"fxquant{next(_NAMES)}")
        self.address = {name: int(self._tracker[name]) for name in objects}
