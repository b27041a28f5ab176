"""Sensitivity: from a network and images to the cost of each width of each weight and activation."""

from __future__ import annotations

from collections.abc import Callable

import torch

from genie_cli.artifacts.images import ImageSet
from genie_cli.config import QuantizeConfig
from genie_cli.config.sensitivity import SensitivityConfig
from genie_cli.models.graph.placement import move
from genie_cli.models.graph.repeatable import check_repeatable
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.activations.passing import ImageRows
from genie_cli.quantization.bits.candidates import make_candidates
from genie_cli.quantization.bits.estimate import estimated_costs
from genie_cli.quantization.bits.exact import exact_costs
from genie_cli.quantization.bits.sensitivity import Sensitivities
from genie_cli.quantization.images import calibration_images
from genie_cli.quantization.plan import QuantizationPlan, make_plan
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.work import NO_WORK
from genie_cli.stages.run import Run
from genie_cli.student.protocol import find_protocol


def sensitivity(
    run: Run,
    config: SensitivityConfig,
    open_network: Callable[[], Teacher],
    open_images: Callable[[Teacher], ImageSet],
) -> Sensitivities:
    """The cost of each width of each weight and activation of a network.

    Args:
        run: what to run on.
        config: the images, the protocol, and whether each is tried.
        open_network: opens the network.
        open_images: opens the images.

    Raises:
        UsageError: an unknown protocol, or more images than there are.
        InputError: a network or images that cannot be used.
        NumbersError: a value that is not finite.
    """
    with run.checks():
        find_protocol(config.protocol)
        teacher = open_network()
        check_repeatable(teacher, run.device)
        images = open_images(teacher)
        run.tell_of(teacher)
        run.tell_of(images)
        given = calibration_images(images, teacher, config.num_images, (run.workers.rank, run.workers.size))
        recipe = QuantizeConfig(protocol=config.protocol, weight_grid=config.weight_grid, seed=config.seed)
        plan = make_plan(teacher, recipe, None)
    run.planned(
        lambda: {
            "teacher": teacher.name,
            "protocol": plan.protocol.name,
            "method": "exact" if config.exact else "estimate",
            "num_images": config.num_images or len(images),
            "layers": len(plan.bits.weights),
            "sites": len(plan.bits.activations),
        }
    )
    run.use_float32("costs are compared, not learned")
    with run.working(NO_WORK) as context:
        return measured(plan, given, images, config.exact, context)


def measured(
    plan: QuantizationPlan, inputs: ImageRows, images: ImageSet, exact: bool, context: RunContext
) -> Sensitivities:
    """The sensitivities of the network of `plan`.

    Args:
        plan: the network and its sites.
        inputs: the images, normalised; with several processes, this one's share.
        images: the set that they are of.
        exact: each is tried; else all are estimated.
        context: what to run on.
    """
    graph = move(plan.folded.graph, context.device)
    candidates = make_candidates(plan, inputs, context)
    if exact:
        weights, activations = exact_costs(candidates, inputs, context)
    else:
        weights, activations = estimated_costs(candidates, inputs, plan.config.seed, context)
    move(graph, torch.device("cpu"))
    num_images = int(context.workers.sum_(torch.tensor([len(inputs)], dtype=torch.int64)))
    return Sensitivities(
        teacher=plan.teacher.name,
        teacher_sha256=plan.teacher.sha256,
        images_sha256=images.sha256,
        num_images=num_images,
        loss="kl" if candidates.distance.energies is None else "squared",
        method="exact" if exact else "estimate",
        protocol=plan.protocol.name,
        weight_grid=plan.config.weight_grid,
        weights=weights,
        activations=activations,
    )
