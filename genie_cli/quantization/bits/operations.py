"""Bit operations: multiplications times the bits of their two factors, summed over the weight layers.

The measure of the cost of mixed-precision networks (BitOps: Wang et al., HAQ, CVPR 2019; Yao et al., HAWQ-V3, ICML
2021). Layers that read the images count these as 8 bits, an input in float counts as 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from genie_cli.models.graph.coverage import layer_multiplications
from genie_cli.models.graph.integer_operations import grid_source
from genie_cli.models.graph.layers import weight_layers
from genie_cli.student.bit_assignment import image_tensors
from genie_cli.student.bit_plan import BitPlan

IMAGE_BITS, FLOAT_BITS = 8, 32


@dataclass(frozen=True)
class LayerOperations:
    """The products of one layer.

    Attributes:
        multiplications: per image.
        site: the activation site that it reads; None: it reads the images, or a tensor in float.
        input_bits: bits of its input where that is no site.
    """

    multiplications: int
    site: str | None
    input_bits: int

    def bitops(self, weight_bits: int, activations: Mapping[str, int]) -> int:
        """Bit operations per image; `activations` is site -> bits."""
        bits = self.input_bits if self.site is None else activations[self.site]
        return self.multiplications * weight_bits * bits


def layer_operations(folded: fx.GraphModule, bits: BitPlan) -> dict[str, LayerOperations]:
    """Layer -> its operations, in a folded graph whose sites are those of `bits`."""
    counts = layer_multiplications(folded)
    layers = weight_layers(folded)
    images = image_tensors(folded, {layer.node for layer in layers})
    sites = {site.node: site.name for site in bits.activations}
    found = {}
    for layer in layers:
        source = layer.sources[0]
        site = sites.get(source.name) or sites.get(grid_source(source).name)
        found[layer.name] = LayerOperations(
            round(counts[layer.name]), site, IMAGE_BITS if source in images else FLOAT_BITS
        )
    return found


def num_bitops(operations: Mapping[str, LayerOperations], bits: BitPlan) -> int:
    """Bit operations of a whole network per image."""
    activations = {site.name: site.bits for site in bits.activations}
    return sum(each.bitops(bits.weights[layer], activations) for layer, each in operations.items())
