"""Sensitivities against closed forms and networks that are built with one tensor quantized."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genie_cli.config import InputSpec, ModelConfig, QuantizeConfig
from genie_cli.data.digits import split
from genie_cli.data.normalize import normalize_pixels
from genie_cli.errors import InputError
from genie_cli.models.digits import INPUT_SPEC
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.models.zoo import load_teacher
from genie_cli.quantization.bits.candidates import Candidates, make_candidates
from genie_cli.quantization.bits.distance import OutputDistance
from genie_cli.quantization.bits.estimate import estimated_costs
from genie_cli.quantization.bits.exact import exact_costs
from genie_cli.quantization.bits.sensitivity import Costs, Sensitivities, read_sensitivities
from genie_cli.quantization.plan import QuantizationPlan
from genie_cli.student.build import insert_quantizers
from genie_cli.student.modules import ActivationQuantizer, FloatWeight
from tests.support.stages import plan_of, run_context

Both = tuple[Costs, Costs]


@functools.cache
def digits() -> Teacher:
    return load_teacher(ModelConfig(name="digits_resnet"))


@functools.cache
def of_digits() -> tuple[QuantizationPlan, Candidates, Tensor]:
    images = normalize_pixels(split(train=True)[0][:24], INPUT_SPEC)
    plan = plan_of(digits(), QuantizeConfig(protocol="ait"))
    return plan, make_candidates(plan, images, run_context()), images


@functools.cache
def estimated() -> Both:
    _, candidates, images = of_digits()
    return estimated_costs(candidates, images, 0, run_context())


@functools.cache
def tried() -> Both:
    _, candidates, images = of_digits()
    return exact_costs(candidates, images, run_context())


def spearman(first: list[float], second: list[float]) -> float:
    """The correlation of ranks, where no two values are equal."""
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (first, second)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


@pytest.mark.parametrize("kind", [0, 1], ids=["weights", "activations"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_estimate_ranks_as_trying_does_within_a_width(kind: int, bits: int) -> None:
    first, second = estimated()[kind], tried()[kind]
    assert list(first) == list(second)
    ranked = spearman([first[name][bits] for name in first], [second[name][bits] for name in first])
    assert ranked >= 0.7


@pytest.mark.parametrize("kind", [0, 1], ids=["weights", "activations"])
def test_small_changes_cost_what_the_second_order_says(kind: int) -> None:
    for name, costs in estimated()[kind].items():
        assert costs[6] == pytest.approx(tried()[kind][name][6], rel=0.5), name


@torch.no_grad()
def test_trying_is_a_network_with_one_tensor_quantized() -> None:
    plan, candidates, images = of_digits()
    graph = plan.folded.graph
    wanted = digits().graph(images).log_softmax(1)
    floats: dict[str, nn.Module] = {
        layer.name: FloatWeight(get_tensor(graph, layer.weight_key)) for layer in weight_layers(graph)
    }
    identities: dict[str, nn.Module] = {site.name: nn.Identity() for site in plan.bits.activations}
    for name, bits in (("layer2.0.downsample.0", 2), ("fc", 3)):
        quantized = {**floats, name: FloatWeight(candidates.weights[name][bits])}
        found = insert_quantizers(graph, plan.bits, quantized, identities)(images).log_softmax(1)
        assert tried()[0][name][bits] == pytest.approx(float(kl(wanted, found)), rel=1e-3)
    for name, bits in (("layer2.0.conv1.input", 2), ("fc.input", 4)):
        quantized = {**identities, name: ActivationQuantizer(*candidates.quantizers[name][bits])}
        found = insert_quantizers(graph, plan.bits, floats, quantized)(images).log_softmax(1)
        assert tried()[1][name][bits] == pytest.approx(float(kl(wanted, found)), rel=1e-3)


def kl(wanted: Tensor, found: Tensor) -> Tensor:
    return (wanted.exp() * (wanted - found)).sum(1).mean()


# --- the squared error of a network without class scores


def test_one_convolution_in_closed_form() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).eval()
    spec = InputSpec(size=6)
    teacher = make_teacher("maps", network, spec)
    plan, images = plan_of(teacher, QuantizeConfig(protocol="ait")), torch.randn(40, 3, 6, 6)
    candidates = make_candidates(plan, images, run_context())
    (layer,) = candidates.weights
    exact, _ = exact_costs(candidates, images, run_context())
    estimate, _ = estimated_costs(candidates, images, 0, run_context())
    with torch.no_grad():
        own = network(images).double().square().sum()
        for bits in (2, 4, 8):
            change = candidates.weights[layer][bits] - network[0].weight
            moved = nn.functional.conv2d(images, change, padding=1).double().square().sum()
            assert exact[layer][bits] == pytest.approx(float(moved / own), rel=1e-4)
            assert estimate[layer][bits] == pytest.approx(float(moved / own), rel=0.25)


def test_directions_have_the_hessian_of_kl_as_their_second_moment() -> None:
    logits = torch.tensor([[2.0, 0.5, -1.0]])
    distance = OutputDistance((0,), None)

    def divergence(own: Tensor) -> Tensor:
        wanted = logits.log_softmax(1)
        return (wanted.exp() * (wanted - own.log_softmax(1))).sum()

    hessian = torch.autograd.functional.hessian(divergence, logits).view(3, 3)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat(distance.half_gradients([logits.expand(20000, 3)], generator))
    torch.testing.assert_close(drawn.T @ drawn / len(drawn), hessian, rtol=0, atol=0.01)


# --- files


def stored(sha256: str) -> Sensitivities:
    return Sensitivities(
        teacher="other", teacher_sha256=sha256, images_sha256="i", num_images=2, loss="kl", method="estimate",
        protocol="ait", weight_grid="asymmetric", weights={"fc": {2: 0.5}}, activations={},
    )  # fmt: skip


def test_a_file_is_read_as_it_was_written_and_fits_one_network(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(stored(digits().sha256).encoded())
    assert read_sensitivities(path, digits()) == stored(digits().sha256)
    path.write_bytes(stored("f" * 64).encoded())
    with pytest.raises(InputError, match=r"the sensitivities of 'other' with weights ffffffffffff, and this network"):
        read_sensitivities(path, digits())


@pytest.mark.parametrize(
    ("content", "told"),
    [("{}", "holds no sensitivities"), ("[", "not valid JSON"), ('{"kind": "sensitivity"}', "cannot be used")],
)
def test_other_files_are_refused(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(InputError, match=told):
        read_sensitivities(tmp_path / "s.json", digits())
