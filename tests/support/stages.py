"""The library's stage functions as tests call them: on the CPU, in float32, alone and in silence unless they say so.

When a signature changes, it changes here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from genie_cli.artifacts.work_folder import NO_WORK, Work
from genie_cli.config import QuantizeConfig, SynthesizeConfig
from genie_cli.data.labeled import LabeledImages
from genie_cli.evaluation import accuracy
from genie_cli.evaluation.accuracy import Evaluation
from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.teacher import Teacher
from genie_cli.quantization import calibration, data_free
from genie_cli.quantization import quantize as quantization
from genie_cli.quantization.activation_store import ActivationPool
from genie_cli.quantization.quantize import ImageRows, QuantizedNetwork
from genie_cli.runtime.distribution import SOLO, Workers
from genie_cli.runtime.progress import Reporter, silent
from genie_cli.student.modules import ActivationQuantizer
from genie_cli.student.protocol import ActivationSite
from genie_cli.synthesis import distill
from genie_cli.synthesis.discrepancy import Student
from genie_cli.synthesis.distill import Synthesis
from tests.support import CPU


def synthesize(
    teacher: Teacher,
    config: SynthesizeConfig,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    report: Reporter = silent,
    workers: Workers = SOLO,
    others: Sequence[Teacher] = (),
    student: Student | None = None,
    work: Work = NO_WORK,
) -> Synthesis:
    """See `synthesize_images`."""
    return distill.synthesize_images(
        teacher, config, device, dtype, report, workers, others=others, student=student, work=work
    )


def quantize(
    teacher: Teacher,
    images: ImageRows,
    config: QuantizeConfig,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    report: Reporter = silent,
    workers: Workers = SOLO,
    work: Work = NO_WORK,
) -> QuantizedNetwork:
    """See `quantize_network`."""
    return quantization.quantize_network(teacher, images, config, device, dtype, report, workers, work)


def quantize_without_images(teacher: Teacher, config: QuantizeConfig, *, report: Reporter = silent) -> QuantizedNetwork:
    """See `quantize_without_images`."""
    return data_free.quantize_without_images(teacher, config, report)


def quantize_as_configured(teacher: Teacher, images: ImageRows, config: QuantizeConfig) -> QuantizedNetwork:
    """Quantize on images, or without them where the recipe takes none."""
    return quantize_without_images(teacher, config) if config.data_free else quantize(teacher, images, config)


def evaluate(
    network: nn.Module,
    data: LabeledImages,
    num_classes: int,
    batch_size: int,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    teacher: nn.Module | None = None,
    report: Reporter = silent,
    workers: Workers = SOLO,
) -> Evaluation:
    """See `accuracy.evaluate`."""
    return accuracy.evaluate(
        network, data, num_classes, batch_size, device, dtype, teacher=teacher, report=report, workers=workers
    )


def calibrate(
    graph: fx.GraphModule, sites: Sequence[ActivationSite], images: Tensor, config: QuantizeConfig, rows: int
) -> dict[str, ActivationQuantizer]:
    """Quantizers of a whole graph's sites, as `calibrate_sites` finds them where the graph is one unit."""
    nodes = data_nodes(graph)
    with ActivationPool(CPU, 0, 1 << 30) as pool:
        store = pool.allocate(tuple(images.shape))
        store.write(0, images)
        return calibration.calibrate_sites(graph, nodes[1:], nodes[0], sites, store, config, rows)


def listen_to_quantization(heard: Callable[[QuantizedNetwork], Any]) -> None:
    """From now on, in this process, each network that commands quantize is shown to `heard`."""
    quantize_network = quantization.quantize_network

    def listened(*args: Any, **options: Any) -> QuantizedNetwork:
        network = quantize_network(*args, **options)
        heard(network)
        return network

    quantization.quantize_network = listened


def replace_evaluation(stand_in: Callable[..., Any]) -> None:
    """From now on, in this process, commands call `stand_in` where they would evaluate a network."""
    accuracy.evaluate = stand_in
