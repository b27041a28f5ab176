"""A step of each unit on two images, before the work: it shows whether units can learn in an arithmetic."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import torch

from genie_cli.models.graph.placement import move
from genie_cli.models.graph.unsupported import unsupported_operation
from genie_cli.quantization.activations.carried import Carried
from genie_cli.quantization.activations.passing import ImageRows, run_over_stores, store_images
from genie_cli.quantization.activations.pool import ActivationPool
from genie_cli.quantization.plan import QuantizationPlan
from genie_cli.quantization.reconstruction.learned_unit import LearnedUnit
from genie_cli.quantization.reconstruction.learner import UnitLearner
from genie_cli.quantization.reconstruction.task import UnitData, UnitTask, make_task
from genie_cli.quantization.units.unit_graph import UnitGraph, cut_out
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.retry import first_line, may_lack_arithmetic
from genie_cli.runtime.shortage import is_out_of_memory
from genie_cli.student.formats import activation_format
from genie_cli.student.modules import ActivationQuantizer

_NUM_IMAGES = 2


def unsupported_quantization(plan: QuantizationPlan, images: ImageRows, context: RunContext) -> str | None:
    """The operation that keeps a unit from learning in the context's arithmetic, in words.

    Args:
        plan: what will be done.
        images: calibration images, of which the first two are used.
        context: device and arithmetic; it is that of one process.

    Returns:
        None where all units can take a step, or where two images already take more memory than there is.
    """
    assert plan.budget is not None, "the plan was made to be looked at"
    if not plan.config.reconstruct:
        return None  # all is computed in float32
    short = {"num_steps": 1, "batch_size": _NUM_IMAGES, "weight_range": "minmax"}
    plan = replace(plan, config=plan.config.model_copy(update=short))
    graph, budget = plan.folded.graph, plan.budget
    assert budget is not None
    move(graph, context.device)
    try:
        with ActivationPool(context.device, budget.device, budget.host, context.report) as pool:
            (entering,) = plan.units[0].entering
            carried = Carried(entering, store_images(images[0:_NUM_IMAGES], pool), torch.empty(0, dtype=torch.int64))
            for unit in plan.units:
                part = cut_out(graph, unit, plan.bits, context.device, plan.slopes)
                inputs = carried.full(unit.sources)
                targets = run_over_stores(part.teacher, inputs, _NUM_IMAGES, pool, context)
                data = UnitData(inputs, inputs, targets, (1.0,) * len(targets), carried.held_out)
                found = _unsupported_unit(plan, part, data, context)
                if found is not None:
                    return found
                for add in (carried.add_full, carried.add_quantized):  # nothing is quantized: both are the same
                    add(unit.outputs, targets, unit.passing)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    finally:
        move(graph, torch.device("cpu"))
    return None


def _unsupported_unit(plan: QuantizationPlan, unit: UnitGraph, data: UnitData, context: RunContext) -> str | None:
    initial = {
        site.name: ActivationQuantizer(1.0, activation_format(site.bits, signed=True)) for site in unit.bits.activations
    }
    task = make_task(unit, plan, initial, LearnedUnit({}, {}, 0), data, context.device)
    try:
        with closing(UnitLearner(task, plan.config, context, 1)) as learner:
            learner.optimization_step(False)(*learner.next_batch())
    except Exception as error:
        if not may_lack_arithmetic(error):
            raise
        return _operation(task, context) or f"unit '{unit.name}' ({first_line(error)})"
    return None


def _operation(task: UnitTask, context: RunContext) -> str | None:
    task.let_go()
    task.use_finished_weights()
    return unsupported_operation(
        task.student, [store.read(0, 1) for store in task.data.full_inputs], context.autocast()
    )
