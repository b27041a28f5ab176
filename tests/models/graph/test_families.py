"""Thirteen torchvision families through capture, folding, units and quantizers, at random weights.

An untouched random network cannot show a folding mistake, because its batch norms are the identity:
here they have scales of both signs, shifts, off-centre means, and the variances of their inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision.models import VGG

from genie_cli.config import InputSpec, ModelConfig, QuantizeConfig
from genie_cli.models.graph.affine_map import affine_maps
from genie_cli.models.graph.batch_norm import batch_norm_sites
from genie_cli.models.graph.capture import aten, capture
from genie_cli.models.graph.coverage import coverage
from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.folding import FoldedGraph, fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.subgraph import extract
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.zoo import load_architecture
from genie_cli.quantization.activations.passing import as_tuple
from genie_cli.quantization.units.partition import Unit, reconstruction_units
from genie_cli.student.bit_assignment import assign_bits
from genie_cli.student.build import insert_quantizers
from genie_cli.student.formats import weight_format
from genie_cli.student.grid import minmax_weight_grid
from genie_cli.student.modules import IntegerWeight
from genie_cli.student.protocol import PROTOCOLS
from tests.support import stages

NUM_IMAGES = 8
FOLDING_BOUND = 1e-3
"""Largest difference that folding may make, as a share of the logits' range."""


@dataclass(frozen=True)
class Family:
    """What is expected of one architecture."""

    name: str
    num_layers: int
    num_batch_norms: int
    num_unfolded: int = 0
    size: int = 64
    units: str = ""
    """Pinned names of the units."""


FAMILIES = [
    Family(
        "resnet18",
        21,
        20,
        units="conv1 layer1.0 layer1.1 layer2.0 layer2.1 layer3.0 layer3.1 layer4.0 layer4.1 fc",
    ),
    Family("resnet50", 54, 53),
    Family(
        "mobilenet_v2",
        53,
        52,
        units=" ".join(["features.0.0", *(f"features.{i}" for i in range(1, 18)), "features.18.0", "classifier.1"]),
    ),
    Family(
        "mobilenet_v3_small",
        54,
        34,
        units=" ".join(["features.0.0", *(f"features.{i}" for i in range(1, 12)), "features.12.0", "classifier"]),
    ),
    Family("mnasnet1_0", 53, 52),
    Family("regnet_x_400mf", 72, 71),
    Family("shufflenet_v2_x0_5", 57, 56),
    Family("densenet121", 121, 121, num_unfolded=62),
    Family("googlenet", 58, 57),
    Family("inception_v3", 95, 94, size=75),
    Family("efficientnet_b0", 82, 49),
    Family(
        "vgg11_bn",
        11,
        8,
        size=32,
        units=" ".join([*(f"features.{i}" for i in (0, 4, 8, 11, 15, 18, 22, 25)), "classifier"]),
    ),
    Family("squeezenet1_0", 26, 0),
]
ALWAYS = ("resnet18", "vgg11_bn", "squeezenet1_0")
"""One of each kind: residual blocks, inverted ones, split channels, a chain, no batch norm."""


@dataclass(frozen=True)
class Case:
    """One family, captured and folded."""

    family: Family
    images: Tensor
    logits: Tensor
    graph: fx.GraphModule
    folded: FoldedGraph


def blurred_noise(size: int, seed: int) -> Tensor:
    """Images that differ in colour and contrast: plain noise looks the same to any network."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(NUM_IMAGES, 3, 4, 4, generator=generator)
    contrast = torch.rand(NUM_IMAGES, 1, 1, 1, generator=generator) + 0.5
    fine = torch.randn(NUM_IMAGES, 3, size, size, generator=generator)
    return contrast * (F.interpolate(coarse, size=(size, size), mode="bilinear") + 0.3 * fine)


@torch.no_grad()
def randomize_batch_norms(network: nn.Module, images: Tensor) -> None:
    """Scales of both signs, shifts and off-centre means; variances from a pass over `images`."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    network.eval()  # no dropout, no stochastic depth
    for norm in norms:
        sign = torch.randint(0, 2, norm.weight.shape) * 2 - 1
        norm.weight.copy_((torch.rand_like(norm.weight) + 0.5) * sign)
        norm.bias.normal_(0, 0.5)
        norm.momentum = 1.0
        norm.train()
    network(images)
    network.eval()
    for norm in norms:
        norm.running_mean.add_(0.2 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean))


@pytest.fixture(
    scope="module",
    params=[pytest.param(f, marks=[] if f.name in ALWAYS else pytest.mark.slow, id=f.name) for f in FAMILIES],
)
def case(request: pytest.FixtureRequest) -> Case:
    family: Family = request.param
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = load_architecture(ModelConfig(name=family.name))
        if isinstance(network, VGG):  # 120 million weights that only take time
            network.classifier[0], network.classifier[3] = nn.Linear(512 * 7 * 7, 64), nn.Linear(64, 64)
            network.classifier[6] = nn.Linear(64, 1000)
        images = blurred_noise(family.size, seed=1)
        randomize_batch_norms(network, blurred_noise(family.size, seed=2))
        logits = network(images)
    graph = capture(network, InputSpec(size=family.size))
    return Case(family, images, logits, graph, fold_batch_norms(graph))


class Constant(nn.Module):
    """Stands for a weight quantizer that does nothing."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Tensor:
        return self.value


def difference(values: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the range of `expected`."""
    return float((values - expected).abs().max() / (expected.max() - expected.min()))


def without_batch_norm(graph_module: fx.GraphModule, name: str) -> fx.GraphModule:
    """A copy in which one batch norm is the identity."""
    nodes = data_nodes(graph_module)
    dropped = extract(graph_module, nodes, nodes[:1], [nodes[-1]])
    site = next(site for site in batch_norm_sites(dropped) if site.name == name)
    site.node.replace_all_uses_with(site.source)
    dropped.graph.eliminate_dead_code()
    dropped.recompile()
    return dropped


def quantize_to_nearest(case: Case, bits: int) -> fx.GraphModule:
    """Every layer and site at `bits`, full ranges, nearest rounding."""
    folded = case.folded.graph
    plan = assign_bits(folded, PROTOCOLS["ait"], bits, bits)
    config = QuantizeConfig(activation_range="minmax")
    activations = stages.calibrate(folded, plan, case.images, config, rows=8)
    weights = {}
    for layer in weight_layers(folded):
        weight = get_tensor(folded, layer.weight_key)
        format = weight_format(bits)
        weights[layer.name] = IntegerWeight.nearest(weight, *minmax_weight_grid(weight, format), format)
    return insert_quantizers(folded, plan, weights, activations)


def test_the_network_is_a_fit_subject(case: Case) -> None:
    spread = case.logits.std(0).mean() / (case.logits.max() - case.logits.min())
    assert spread > 0.01
    assert all((site.weight < 0).any() and (site.weight > 0).any() for site in batch_norm_sites(case.graph))


def test_capture_keeps_the_logits(case: Case) -> None:
    assert difference(case.graph(case.images), case.logits) < 1e-6


def test_normal_form(case: Case) -> None:
    nodes = case.graph.graph.nodes
    assert [node.op for node in nodes].count("placeholder") == 1
    assert {node.op for node in nodes} == {"placeholder", "get_attr", "call_function", "output"}
    calls = [node.target for node in nodes if node.op == "call_function"]
    assert not [target for target in calls if isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable]
    assert not [target for target in calls if "dropout" in str(target) or "sym_size" in str(target)]
    assert calls.count(aten.batch_norm.default) == case.family.num_batch_norms
    tensors = [*case.graph.parameters(), *case.graph.buffers()]
    assert tensors
    assert not any(tensor.requires_grad for tensor in tensors)
    read = [key for layer in weight_layers(case.graph) for key in (layer.weight_key, layer.bias_key) if key]
    assert len(read) == len(set(read))


def test_folding_keeps_the_logits(case: Case) -> None:
    family = case.family
    assert difference(case.folded.graph(case.images), case.logits) < FOLDING_BOUND
    assert not batch_norm_sites(case.folded.graph)
    assert len(affine_maps(case.folded.graph)) == len(case.folded.unfolded) == family.num_unfolded
    assert len(case.folded.multipliers) == family.num_batch_norms - family.num_unfolded
    assert len(batch_norm_sites(case.graph)) == family.num_batch_norms  # the given graph is left alone


def test_folding_check_sees_one_missing_batch_norm(case: Case) -> None:
    sites = batch_norm_sites(case.graph)
    for site in {index: sites[index] for index in (0, len(sites) // 2, len(sites) - 1)}.values() if sites else ():
        assert difference(without_batch_norm(case.graph, site.name)(case.images), case.logits) > FOLDING_BOUND


def test_all_weights_can_be_quantized(case: Case) -> None:
    found = coverage(case.folded.graph, case.folded.unfolded)
    assert found.in_float == {}
    assert found.multiplications == 1
    assert set(found.batch_norms) == set(case.folded.unfolded)
    assert (found.parameters == 1) == (case.family.num_unfolded == 0)
    assert not found.is_low


def test_units_cover_the_graph_once_and_in_order(case: Case) -> None:
    folded = case.folded.graph
    layers = [layer.name for layer in weight_layers(folded)]
    units = reconstruction_units(folded)
    assert len(layers) == case.family.num_layers
    assert [layer for unit in units for layer in unit.layers] == layers
    assert len({unit.name for unit in units}) == len(units)
    if case.family.units:
        assert [unit.name for unit in units] == case.family.units.split()
    assert all(len(unit.sources) == len(unit.outputs) == 1 and not unit.passing for unit in units)
    assert torch.equal(walked(folded, units, case.images), folded(case.images))


@pytest.mark.parametrize("max_layers", [1, 4, 12])
def test_units_within_a_limit_cover_the_graph_too(case: Case, max_layers: int) -> None:
    folded = case.folded.graph
    whole = reconstruction_units(folded)
    units = reconstruction_units(folded, max_layers=max_layers)
    assert [layer for unit in units for layer in unit.layers] == [layer.name for layer in weight_layers(folded)]
    assert len({unit.name for unit in units}) == len(units)
    assert max(len(unit.layers) for unit in units) <= max_layers
    assert all(unit in units for unit in whole if len(unit.layers) <= max_layers)
    assert torch.equal(walked(folded, units, case.images), folded(case.images))


def walked(folded: fx.GraphModule, units: Sequence[Unit], images: Tensor) -> Tensor:
    """The output by way of the units, each of which sees the values alone that it names."""
    nodes = data_nodes(folded)
    values = {nodes[0]: images}
    for unit in units:
        assert set(values) == set(unit.entering)
        piece = extract(folded, unit.nodes, unit.sources, unit.outputs)
        assert tuple(layer.name for layer in weight_layers(piece)) == unit.layers
        made = as_tuple(piece(*(values[node] for node in unit.sources)))
        values = {**{node: values[node] for node in unit.passing}, **dict(zip(unit.outputs, made, strict=True))}
    (output,) = values.values()
    return output


def test_protocol_hardware_adds_outputs(case: Case) -> None:
    graph = case.folded.graph
    plan = assign_bits(graph, PROTOCOLS["hardware"], 4, 4)
    sites, ait = plan.activations, assign_bits(graph, PROTOCOLS["ait"], 4, 4).activations
    assert {site.name for site in ait} <= {site.name for site in sites}
    assert len({site.node for site in sites}) == len({site.name for site in sites}) == len(sites)
    assert {site.bits for site in sites} == {4}
    assert set(plan.weights.values()) == {4}
    if case.family.name != "squeezenet1_0":  # its last convolution's output is read by a relu and a pooling
        assert sites[-1].name == f"{weight_layers(graph)[-1].name}.output"
    # mobilenets: each addition is read by a convolution
    more = {"resnet18": 2, "mobilenet_v2": 1, "mobilenet_v3_small": 1, "vgg11_bn": 1, "squeezenet1_0": 1}
    assert case.family.name not in more or len(sites) == len(ait) + more[case.family.name]


def test_quantizers_that_change_nothing_give_the_folded_logits(case: Case) -> None:
    folded = case.folded.graph
    plan = assign_bits(folded, PROTOCOLS["genie"], 4, 4)
    weights = {layer.name: Constant(get_tensor(folded, layer.weight_key)) for layer in weight_layers(folded)}
    student = insert_quantizers(folded, plan, weights, {site.name: nn.Identity() for site in plan.activations})
    assert torch.equal(student(case.images), folded(case.images))


def test_quantized_graph_follows_the_float_one(case: Case) -> None:
    student = quantize_to_nearest(case, bits=8)
    three = student(case.images[:3])
    assert torch.isfinite(three).all()
    # any batch size runs; kernels of other batch sizes round otherwise, which the float graph hardly shows
    assert student(case.images[:1]).shape == (1, three.shape[1])
    assert difference(case.folded.graph(case.images[:1]), case.folded.graph(case.images[:3])[:1]) < 1e-3
    logits = student(case.images)
    pair = torch.stack([(values - values.mean(0)).flatten() for values in (logits, case.logits)])
    # what an image changes in the logits; deep random networks amplify rounding, 0.53 to 0.998 measured
    assert torch.corrcoef(pair)[0, 1] > 0.4
    assert not torch.equal(logits, case.folded.graph(case.images))
