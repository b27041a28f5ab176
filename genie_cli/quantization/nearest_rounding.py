"""Weights rounded to nearest: nothing is learned, nothing is solved for."""

from __future__ import annotations

from genie_cli.config import QuantizeConfig
from genie_cli.models.graph.layers import WeightLayer
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.quantization.units.unit_graph import UnitGraph
from genie_cli.student.grid import weight_grid
from genie_cli.student.modules import IntegerWeight


def nearest_weight(unit: UnitGraph, layer: WeightLayer, config: QuantizeConfig) -> IntegerWeight:
    """The weight of one layer on its initial grid (`weight_range`), each element at the nearest integer."""
    weight, format = get_tensor(unit.teacher, layer.weight_key), unit.bits.weight_format(layer.name)
    return IntegerWeight.nearest(weight, *weight_grid(weight, format, config.weight_range), format)
