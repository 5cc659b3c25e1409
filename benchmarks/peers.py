"""The contenders: each builds a runner of a model on one runtime, from the same weights and calibration data.

A contender is a function `(model, calibration, threads) -> runner`. It may change `model` (it gets a copy of its own),
reads `calibration` (tuples of forward arguments, all of one shape), and uses at most `threads` CPU threads; PyTorch has
its own from `torch.set_num_threads`. The runner maps a tuple of forward arguments to that of the fp32 outputs. Peers
run as their documentation recommends, in particular with 7-bit weights where the CPU's int8 multiply-add can saturate.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]
Runner = Callable[[Inputs], tuple[Tensor, ...]]
Build = Callable[[nn.Module, list[Inputs], int], Runner]


def cpu_info(field: str) -> str:
    """The value of `field` for the first CPU in /proc/cpuinfo, or "" where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def has_vnni() -> bool:
    """Whether the CPU multiplies and adds 8-bit integers without saturating at 16 bits."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(cpu_info("flags").split())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop warnings and whatever is written to stdout and stderr, from native code too."""
    sys.stdout.flush()
    saved, sink = (os.dup(1), os.dup(2)), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdout.flush()
        for target, descriptor in zip((1, 2), saved, strict=True):
            os.dup2(descriptor, target)
        for descriptor in (*saved, sink):
            os.close(descriptor)


def _caller(module: Callable[..., Any]) -> Runner:
    return lambda inputs: outputs(module(*inputs))


def outputs(result: Any) -> tuple[Tensor, ...]:
    """What forward() returns, as a tuple."""
    return result if isinstance(result, tuple) else (result,)


# PyTorch ----------------------------------------------------------------------------------------------------


def torch_fp32(model: nn.Module, calibration: list[Inputs], threads: int) -> Runner:
    """The float model, eager."""
    return _caller(model)


def torch_compile(model: nn.Module, calibration: list[Inputs], threads: int) -> Runner:
    """The float model compiled by inductor with frozen weights, its setting for inference."""
    torch._dynamo.reset()  # else the models before count towards dynamo's limit of recompilations
    return _caller(torch.compile(model, options={"freezing": True}))


def torch_ao(model: nn.Module, calibration: list[Inputs], threads: int) -> Runner:
    """Static quantization of torch.ao in FX graph mode, with its settings for x86."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "x86"
    try:
        prepared = prepare_fx(model, get_default_qconfig_mapping("x86"), calibration[0])
        with torch.no_grad():
            for inputs in calibration:
                prepared(*inputs)
        return _caller(convert_fx(prepared))
    finally:
        torch.backends.quantized.engine = engine


def torch_ao_dynamic(dtype: torch.dtype, embeddings: bool = False) -> Build:
    """`torch.ao.quantization.quantize_dynamic` with its defaults; with `embeddings`, of their tables, too."""

    def build(model: nn.Module, calibration: list[Inputs], threads: int) -> Runner:
        from torch.ao.quantization import default_dynamic_qconfig as int8
        from torch.ao.quantization import float_qparams_weight_only_qconfig as rows
        from torch.ao.quantization import quantize_dynamic

        spec = dict.fromkeys((nn.Linear, nn.LSTM, nn.GRU), int8) | dict.fromkeys((nn.Embedding, nn.EmbeddingBag), rows)
        return _caller(quantize_dynamic(model, spec if embeddings else None, dtype=dtype))

    return build


# ONNX Runtime -----------------------------------------------------------------------------------------------


class _Reader:
    """Feeds calibration batches to ONNX Runtime (a `CalibrationDataReader` by its one method)."""

    def __init__(self, feeds: Iterable[dict[str, Any]]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


Quantize = Callable[[str, str, Iterable[dict[str, Any]]], None]


def _onnx(quantize: Quantize) -> Build:
    """ONNX Runtime on the exported model after `quantize(source, target, feeds)`.

    Its threads spin as by default, which is fastest on idle cores: without, MobileNetV2 took 9.1 ms, not 6.2.
    They spin for about 50 ms after a call; wait for that before timing anything else.
    """

    def build(model: nn.Module, calibration: list[Inputs], threads: int) -> Runner:
        import onnxruntime as ort
        from onnxruntime.quantization.shape_inference import quant_pre_process

        names = [f"input{position}" for position in range(len(calibration[0]))]

        def feed(inputs: Inputs) -> dict[str, Any]:
            return {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        with tempfile.TemporaryDirectory() as folder:
            exported, prepared, quantized = (f"{folder}/{stage}.onnx" for stage in ("fp32", "prepared", "int8"))
            torch.onnx.export(model, calibration[0], exported, input_names=names, dynamo=True, verbose=False)
            try:
                quant_pre_process(exported, prepared)
            except TypeError:  # its inference of shapes does not know all ops
                prepared = exported
            quantize(prepared, quantized, map(feed, calibration))
            session = ort.InferenceSession(quantized, options, providers=["CPUExecutionProvider"])
        return lambda inputs: tuple(map(torch.from_numpy, session.run(None, feed(inputs))))

    return build


def _onnx_static(source: str, target: str, feeds: Iterable[dict[str, Any]]) -> None:
    """Static QDQ quantization: U8 activations, S8 weights per channel."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        source,
        target,
        _Reader(feeds),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=not has_vnni(),
    )


def _onnx_dynamic(source: str, target: str, feeds: Iterable[dict[str, Any]]) -> None:
    """Dynamic quantization: S8 weights per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, per_channel=True, reduce_range=not has_vnni(), weight_type=QuantType.QInt8)


# OpenVINO ---------------------------------------------------------------------------------------------------


def openvino(model: nn.Module, calibration: list[Inputs], threads: int) -> Runner:
    """Post-training quantization by NNCF (mixed preset) on OpenVINO.

    Without VNNI its overflow fix covers all layers, not just the first: +1.5 dB on MobileNetV2, equally fast.
    Its `model_type` for transformers is not set: that was no faster on the zoo's, and 4 dB worse.
    """
    with patch.dict(os.environ, CI="true", NNCF_CI="1"):  # no telemetry: it forks a process that may be timed
        import nncf
        import openvino as ov

        shapes = [tuple(tensor.shape) for tensor in calibration[0]]
        converted = ov.convert_model(model, example_input=calibration[0], input=shapes)
        overflow_fix = nncf.OverflowFix.DISABLE if has_vnni() else nncf.OverflowFix.ENABLE
        quantized = nncf.quantize(
            converted,
            nncf.Dataset([[tensor.numpy() for tensor in inputs] for inputs in calibration]),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(calibration),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=overflow_fix),
        )
        config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled = ov.Core().compile_model(quantized, "CPU", config)
    return lambda inputs: tuple(map(torch.from_numpy, compiled([tensor.numpy() for tensor in inputs]).to_tuple()))


def fxquant_compiled(scheme: Any, **options: Any) -> Build:
    """Quantization by fxquant, with further `options` for its `compile`."""

    def build(model: nn.Module, calibration: list[Inputs], threads: int) -> Runner:
        import fxquant

        data: dict[str, Any] = {"calibration": calibration} if scheme == "static" else {"example": calibration[0]}
        return _caller(fxquant.compile(model, scheme=scheme, **data, **options))

    return build


TORCH_AO = "torch.ao FX x86"
PEERS: dict[str, Build] = {
    "torch fp32": torch_fp32,
    "torch.compile": torch_compile,
    TORCH_AO: torch_ao,
    "ONNX Runtime int8": _onnx(_onnx_static),
    "OpenVINO int8 (NNCF)": openvino,
}
CONTENDERS: dict[str, Build] = {
    **PEERS,
    "fxquant": fxquant_compiled("static"),
    "fxquant x86": fxquant_compiled("static", backend="x86"),
}

TORCH_AO_DYNAMIC = "torch.ao dynamic"
DYNAMIC: dict[str, Build] = {
    "torch fp32": torch_fp32,
    TORCH_AO_DYNAMIC: torch_ao_dynamic(torch.qint8),
    "torch.ao dynamic, embeddings": torch_ao_dynamic(torch.qint8, embeddings=True),
    "torch.ao fp16": torch_ao_dynamic(torch.float16),
    "ONNX Runtime dynamic": _onnx(_onnx_dynamic),
    "OpenVINO int8 (NNCF)": openvino,
    "fxquant dynamic": fxquant_compiled("dynamic"),
    "fxquant fp16": fxquant_compiled("dynamic", dtype=torch.float16),
}
