"""Make an exported file and its report: the content, and how it was found to run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from genie_cli.artifacts.export_report import described_agreement
from genie_cli.config.export import ExportConfig
from genie_cli.deployment.check import compare, has_vnni, noise_pixels, worst_output
from genie_cli.deployment.integer_form import Storage, integer_form, may_saturate
from genie_cli.deployment.kernels import kernels_of
from genie_cli.deployment.metadata import ExportMetadata
from genie_cli.deployment.onnx_file import onnx_bytes
from genie_cli.deployment.program import Program, make_program
from genie_cli.deployment.pt2_file import pt2_bytes
from genie_cli.deployment.runtimes import FORMATS, open_runtime
from genie_cli.errors import AgreementError, UsageError
from genie_cli.student.modules import ActivationQuantizer, FloatWeight, IntegerWeight
from genie_cli.student.quantized_layers import has_integer_kernel, quantized_layers


@dataclass(frozen=True)
class Exported:
    """An exported file that was run, not written yet.

    Attributes:
        content: its bytes.
        report: what is said of it beside it, as JSON values.
    """

    content: bytes
    report: dict[str, Any]


def check_options(config: ExportConfig) -> None:
    """Refuse, before the work, options that do not go together.

    Raises:
        UsageError: a suffix of another format, an option that the format does not have, or a file for a folder.
    """
    suffix = next(suffix for suffix, format in FORMATS.items() if format == config.format)
    if config.path.suffix != suffix:
        raise UsageError(f"--out {config.path} must end in {suffix} for --format {config.format}.")
    if config.format == "pt2" and config.storage == "packed":
        raise UsageError("--storage packed is of --format onnx: torch has no packed weights. Leave one of them out.")
    if config.format == "pt2" and config.opset is not None:
        raise UsageError("--opset is of --format onnx: leave it out.")
    if config.quantized is not None and config.quantized.is_file():
        raise UsageError(
            f"--quantized {config.quantized} is a file: name the folder that 'genie quantize' wrote, or leave it out "
            "to export the network in float."
        )
    if config.storage == "packed" and config.quantized is None:
        raise UsageError("--storage packed is of a quantized network: give --quantized FOLDER.")


def export(
    network: fx.GraphModule,
    reference: fx.GraphModule,
    metadata: ExportMetadata,
    config: ExportConfig,
    pixels: Tensor | None,
) -> Exported:
    """Make the file of a network, and run it.

    Args:
        network: quantized and computed in floats, or in float, folded; in evaluation mode, on the CPU.
        reference: the network whose answers the file has to give.
        metadata: what the file says of itself; its outputs are filled in.
        config: format, storage, input and the bound of the check.
        pixels: images to check it on besides noise, uint8 ``[n, C, H, W]``; None: noise alone.

    Raises:
        UsageError: a package is not installed, or an opset that cannot hold the network.
        InputError: the network cannot be said in the format, or the runtime refuses it.
        AgreementError: the file answers otherwise than the network in genie.
    """
    storage: Storage | None = None if config.quantized is None else config.storage
    write = _writer(config, storage)
    content, metadata = _made(network, storage, metadata, write, config)
    runtime = open_runtime(content, config.format, where=None)
    noise = noise_pixels(metadata.input)
    images = noise if pixels is None else pixels
    differences = compare(runtime, reference, images, metadata.input, config.input, metadata.logits)
    noise_differences = (
        differences
        if pixels is None
        else compare(runtime, reference, noise, metadata.input, config.input, metadata.logits)
    )
    worst = worst_output(differences, metadata.logits)
    agreement = differences[worst].agreement
    report: dict[str, Any] = {
        **metadata.model_dump(mode="json", exclude={"weight_bits", "activation_bits"}),
        "runtime": f"{runtime.name} {runtime.version}",
        "num_bytes": len(content),
        "images": "noise" if pixels is None else "given",
        "num_images": len(images),
        "agreement": agreement,
        "agreement_of": worst,
        "min_agreement": config.min_agreement,
        "differences": {name: asdict(difference) for name, difference in differences.items()},
        "differences_on_noise": {name: asdict(difference) for name, difference in noise_differences.items()},
    }
    if storage is not None:
        report["num_float_bytes"] = len(_made(_in_float(network), None, metadata, write, config)[0])
        report |= _saturation(network, storage if config.format == "onnx" else None)
    if config.format == "onnx":
        report |= _kernel_facts(content)
    if agreement < config.min_agreement:
        raise AgreementError(
            f"{runtime.name} {runtime.version} answers as genie does for {described_agreement(report)}, less "
            f"than --min-agreement {config.min_agreement:.1%}: nothing was written. Its outputs differ by up to "
            f"{max(each.largest for each in differences.values()):.3g}. Try --storage packed or --format pt2, images "
            "of the network's own kind in --images, or a lower bound."
        )
    return Exported(content, report)


def _saturation(network: fx.GraphModule, storage: Storage | None) -> dict[str, Any]:
    """The layers that may saturate on other processors, and whether this one is such; None: all is in float."""
    layers = quantized_layers(network) if storage == "int8" else ()
    names = [layer.name for layer in layers if may_saturate(layer) and has_integer_kernel(network, layer.node)]
    return {"saturates_without_vnni": names, "processor_has_vnni": has_vnni()}


def _kernel_facts(content: bytes) -> dict[str, Any]:
    """The kernels that ONNX Runtime takes for a file."""
    kernels = kernels_of(content)
    return {
        "num_layers": kernels.num_layers,
        "num_integer_layers": kernels.integer_layers,
        "integer_layers": kernels.integer_share,
        "operators": dict(kernels.operators),
        "float_islands": list(kernels.float_islands),
    }


_Write = Callable[[Program, ExportMetadata], bytes]


def _writer(config: ExportConfig, storage: Storage | None) -> _Write:
    def write(program: Program, metadata: ExportMetadata) -> bytes:
        if config.format == "pt2":
            return pt2_bytes(program, metadata)
        return onnx_bytes(program, storage if metadata.storage != "float" else None, config.opset, metadata)

    return write


def _made(
    network: fx.GraphModule, storage: Storage | None, metadata: ExportMetadata, write: _Write, config: ExportConfig
) -> tuple[bytes, ExportMetadata]:
    form = network if storage is None else integer_form(network, storage, integer_biases=config.format == "onnx")
    program = make_program(form, metadata.input, config.input)
    metadata = metadata.model_copy(update={"outputs": program.outputs, "storage": storage or "float"})
    return write(program, metadata), metadata


@torch.no_grad()
def _in_float(network: fx.GraphModule) -> fx.GraphModule:
    """The network with its weights as floats and no activation quantizers: a file to compare the size with."""
    plain = copy.deepcopy(network)
    for name, module in list(plain.named_modules()):
        if isinstance(module, IntegerWeight):
            plain.set_submodule(name, FloatWeight(module()))
        elif isinstance(module, ActivationQuantizer):
            plain.set_submodule(name, nn.Identity())
    return plain
