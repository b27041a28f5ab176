"""Activation functions on a captured graph, by the two meanings that other files need.

Both lists mean nodes that stand directly behind a weight layer. They share a core and differ in stated extras, since
one says what an accelerator computes and the other what is reconstructed together.
"""

from __future__ import annotations

from genie_cli.models.graph.affine_map import affine_map
from genie_cli.models.graph.capture import aten

_CORE = (
    aten.relu.default,
    aten.hardtanh.default,
    aten.clamp.default,
    aten.leaky_relu.default,
    aten.silu.default,
    aten.hardswish.default,
    aten.sigmoid.default,
    aten.gelu.default,
)
ELEMENTWISE = (
    *_CORE,
    aten.relu6.default,
    aten.clamp_min.default,
    aten.threshold.default,
    aten.prelu.default,
    aten.elu.default,
    aten.selu.default,
    aten.celu.default,
    aten.mish.default,
    aten.hardsigmoid.default,
    aten.tanh.default,
    aten.softplus.default,
)
"""Functions of each element alone, which accelerators compute as they write the result of an operation."""
FUSED_WITH_LAYER = (*_CORE, affine_map)
"""Operations that are reconstructed together with the layer before them, where they are that layer's only reader.

PReLU, ELU and others are left out so that networks quantized layer by layer keep their results.
"""
