"""The library's stage functions as tests call them: on the CPU, in float32, alone and in silence unless they say so.

When a signature changes, it changes here. What a stage runs on is given by name (`dtype=`, `work=`): see `run_context`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from genie_cli.config import QuantizeConfig, SynthesizeConfig
from genie_cli.data.samples import Samples
from genie_cli.evaluation import evaluate as evaluation
from genie_cli.evaluation.evaluate import Evaluation
from genie_cli.evaluation.metrics.choose import Wanted, choose_metrics
from genie_cli.evaluation.metrics.decision import Decision
from genie_cli.evaluation.metrics.network_outputs import NetworkOutputs
from genie_cli.models.graph.cuts import data_nodes, output_nodes
from genie_cli.models.teacher import Teacher
from genie_cli.quantization import quantize as quantization
from genie_cli.quantization.activations import step_sizes
from genie_cli.quantization.activations.passing import ImageRows, store_images
from genie_cli.quantization.activations.pool import ActivationPool
from genie_cli.quantization.data_free import quantize as data_free
from genie_cli.quantization.plan import QuantizationPlan, make_plan
from genie_cli.quantization.result import QuantizedNetwork
from genie_cli.quantization.units.unit_graph import UnitGraph
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.distribution import SOLO, Workers
from genie_cli.runtime.progress import Reporter, silent
from genie_cli.runtime.shortage import BatchSplitter
from genie_cli.runtime.work import NO_WORK, Work
from genie_cli.student.bit_plan import BitPlan
from genie_cli.student.modules import ActivationQuantizer
from genie_cli.synthesis import synthesize as synthesis
from genie_cli.synthesis.discrepancy import Student
from genie_cli.synthesis.synthesize import Synthesis
from tests.support import CPU


def run_context(
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    report: Reporter = silent,
    workers: Workers = SOLO,
    work: Work = NO_WORK,
    log_every: int | None = None,
) -> RunContext:
    """The context of a stage."""
    return RunContext(device, dtype, workers, report, work, BatchSplitter(report), log_every)


def synthesize(
    teacher: Teacher,
    config: SynthesizeConfig,
    others: Sequence[Teacher] = (),
    student: Student | None = None,
    **running: Any,
) -> Synthesis:
    """See `synthesize_images`."""
    return synthesis.synthesize_images(teacher, config, run_context(**running), others, student)


def plan_of(teacher: Teacher, config: QuantizeConfig, device: torch.device | None = CPU) -> QuantizationPlan:
    """See `make_plan`."""
    return make_plan(teacher, config, device)


def quantize(teacher: Teacher, images: ImageRows, config: QuantizeConfig, **running: Any) -> QuantizedNetwork:
    """See `quantize_network`."""
    context = run_context(**running)
    return quantization.quantize_network(plan_of(teacher, config, context.device), images, context)


def quantize_without_images(teacher: Teacher, config: QuantizeConfig, report: Reporter = silent) -> QuantizedNetwork:
    """See `quantize_without_images`; `config` need not say that there are no images."""
    plan = plan_of(teacher, config.model_copy(update={"data_free": True}))
    return data_free.quantize_without_images(teacher, plan, report)


def quantize_as_configured(teacher: Teacher, images: ImageRows, config: QuantizeConfig) -> QuantizedNetwork:
    """Quantize on images, or without them where the recipe takes none."""
    return quantize_without_images(teacher, config) if config.data_free else quantize(teacher, images, config)


def evaluate(
    network: nn.Module,
    data: Samples,
    num_classes: int,
    batch_size: int,
    teacher: nn.Module | None = None,
    wanted: Wanted = Wanted(),  # noqa: B008
    threshold: float = 0.0,
    **running: Any,
) -> Evaluation:
    """See `evaluation.evaluate`; metrics are chosen as commands choose them."""
    outputs = NetworkOutputs(("output",), Decision(num_classes, threshold), None, threshold)
    metrics = choose_metrics(wanted, data, outputs, teacher is not None)
    return evaluation.evaluate(network, data, metrics, batch_size, run_context(**running), teacher)


def calibrate(
    graph: fx.GraphModule, bits: BitPlan, images: Tensor, config: QuantizeConfig, rows: int, **running: Any
) -> dict[str, ActivationQuantizer]:
    """Quantizers of a whole graph's sites, as `initial_step_sizes` finds them where the graph is one unit."""
    context, nodes = run_context(**running), data_nodes(graph)
    outputs = tuple(output_nodes(graph))
    unit = UnitGraph("network", tuple(nodes[1:]), (nodes[0],), outputs, graph, bits, frozenset(), rows)
    with ActivationPool(CPU, 0, 1 << 30, context.report) as pool:
        return step_sizes.initial_step_sizes(graph, unit, [store_images(images, pool)], config, context)


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
    evaluation.evaluate = stand_in
