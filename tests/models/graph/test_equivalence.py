"""Rewrites are compared with the user's own module, and what does not hold is undone, named or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genie_cli.config import InputSpec, QuantizeConfig
from genie_cli.errors import InputError
from genie_cli.models.graph import folding
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.equivalence import make_reference, relative_distance
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.outputs import as_tuple
from genie_cli.models.preparation import prepared
from genie_cli.models.teacher import make_teacher
from genie_cli.quantization.plan import make_plan
from tests.support import stages

SPEC = InputSpec(size=8)


def seeded(network: nn.Module) -> nn.Module:
    """Batch norms with statistics of their own."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 2, generator=generator)
    return network.eval()


def plain() -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)]
    return nn.Sequential(*layers)


class Tokens(nn.Module):
    """A linear layer over positions, whose batch norm is over channels: as many of one as of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.norm, self.fc = (
            nn.Conv2d(3, 9, 6),
            nn.Linear(9, 9),
            nn.BatchNorm1d(9),
            nn.Linear(9, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.mix(self.stem(x).flatten(2))).amax(2))


def test_a_batch_norm_over_another_axis_stays():
    network = seeded(Tokens())
    teacher = make_teacher("tokens", network, SPEC)
    folded = fold_batch_norms(teacher.graph, teacher.reference)
    assert list(folded.unfolded) == ["norm"] and "not the output channels of mix" in folded.unfolded["norm"]
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(folded.graph(images), network(images), rtol=1e-5, atol=1e-5)


def test_a_fold_that_does_not_hold_is_undone_and_named(monkeypatch: pytest.MonkeyPatch):
    fold = folding._fold

    def broken(graph, site, layer):
        multiplier = fold(graph, site, layer)
        if site.name == "1":
            folding.set_tensor(graph, layer.weight_key, folding.get_tensor(graph, layer.weight_key) * 1.5)
        return multiplier

    torch.manual_seed(2)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)]
    network = seeded(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    teacher = make_teacher("net", network, SPEC)
    monkeypatch.setattr(folding, "_fold", broken)
    folded = fold_batch_norms(teacher.graph, teacher.reference)
    assert list(folded.unfolded) == ["1"] and "moves the network's output" in folded.unfolded["1"]
    assert list(folded.multipliers) == ["3"]
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(folded.graph(images), network(images), rtol=1e-5, atol=1e-5)


def test_the_output_error_is_against_the_unfolded_teacher(monkeypatch: pytest.MonkeyPatch):
    """A broken fold that nobody notices moves it, though each unit agrees with its own folded target."""
    network = seeded(plain())
    teacher = make_teacher("net", network, SPEC)
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    config = QuantizeConfig(reconstruct=False, weight_bits=8, activation_bits=8, protocol="ait")
    sound = stages.quantize(teacher, images, config)
    fold = folding._fold

    def broken(graph, site, layer):
        folding.set_tensor(graph, layer.weight_key, folding.get_tensor(graph, layer.weight_key) * 1.5)
        return fold(graph, site, layer)

    monkeypatch.setattr(folding, "_fold", broken)
    lenient = copy.copy(teacher.reference)
    object.__setattr__(lenient, "bound", float("inf"))
    careless = copy.copy(teacher)
    object.__setattr__(careless, "reference", lenient)
    wrong = stages.quantize(careless, images, config)
    assert sound.output_errors["output"] < 1e-3
    assert wrong.units[-1].relative_error < 1e-3
    assert wrong.output_errors["output"] > 0.01


def test_a_capture_that_does_not_hold_is_refused():
    class Remembers(nn.Module):
        """Reads a number out of Python at its capture, and another one later."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.is_captured = plain(), False

        def forward(self, x: Tensor) -> Tensor:
            factor = 1.0 if torch.compiler.is_exporting() else 2.0
            return factor * self.body(x)

    with pytest.raises(InputError, match="does not compute what the network does"):
        make_teacher("net", seeded(Remembers()), SPEC)


class Random(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.how = plain(), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.how == "functional":
            return F.dropout(y, 0.5)
        if self.how == "module":
            return nn.Dropout(0.5)(y)
        if self.how == "feature":
            return F.dropout2d(y[:, :, None, None], 0.4).flatten(1)
        if self.how == "alpha":
            return F.alpha_dropout(y, 0.5, training=True)
        if self.how == "slope":
            return F.rrelu(y, training=True)
        if self.how == "attention":
            tokens = y.unsqueeze(1).repeat(1, 3, 1)
            return F.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=0.5).mean(1)
        return y + torch.rand_like(y)


@pytest.mark.parametrize("how", ["functional", "module", "feature", "alpha", "slope", "attention"])
def test_dropout_that_stays_on_is_taken_out_and_said(how: str):
    teacher = make_teacher("net", seeded(Random(how)), SPEC)
    assert any("in evaluation mode" in note for note in teacher.notes)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(teacher.graph(images), teacher.graph(images))


def test_other_randomness_is_refused():
    with pytest.raises(InputError, match="from call to call"):
        make_teacher("net", seeded(Random("noise")), SPEC)


def test_answers_that_depend_on_the_batch_are_refused():
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), nn.Flatten(), nn.Linear(216, 4)
    )
    with pytest.raises(InputError, match=r"other images of its batch \(batch statistics in 1\)"):
        make_teacher("net", network.eval(), SPEC)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_and_said(dtype: torch.dtype):
    network = seeded(plain())
    expected = copy.deepcopy(network).to(dtype).float()
    teacher = make_teacher("net", network.to(dtype), SPEC)
    assert any("cast to float32" in note for note in teacher.notes)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(teacher.graph(images), expected(images), rtol=1e-5, atol=1e-5)


def test_complex_parameters_are_stored_as_real_ones():
    class Filtered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 4, 3, padding=1)
            self.filter = nn.Parameter(torch.randn(4, 8, 5, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.fft.rfft2(self.body(x)) * self.filter
            return torch.fft.irfft2(y, s=(8, 8)).mean((2, 3))

    network = Filtered().eval()
    graph = make_teacher("net", network, SPEC).graph
    assert all(not buffer.is_complex() for buffer in graph.buffers())
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(graph(images), network(images), rtol=1e-4, atol=1e-5)


def test_a_frozen_batch_norm_is_one():
    class Frozen(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            for name, value in {"weight": 2.0, "bias": 0.5, "running_mean": 0.1, "running_var": 3.0}.items():
                self.register_buffer(name, torch.full((channels,), value))

        def forward(self, x: Tensor) -> Tensor:
            scale = self.weight * (self.running_var + 1e-5).rsqrt()
            return x * scale.view(-1, 1, 1) + (self.bias - self.running_mean * scale).view(-1, 1, 1)

    network = nn.Sequential(nn.Conv2d(3, 6, 3), Frozen(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    made, _ = prepared(network)
    assert isinstance(network[1], Frozen)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(made(images), network(images))
    teacher = make_teacher("net", network, SPEC)
    assert fold_batch_norms(teacher.graph, teacher.reference).multipliers.keys() == {"0"}


def test_nan_and_infinity_have_to_stand_in_the_same_places():
    a, b = torch.tensor([1.0, float("nan")]), torch.tensor([float("nan"), 1.0])
    assert relative_distance([a], [a]) == 0
    assert relative_distance([a], [b]) == float("inf")
    assert relative_distance([torch.ones(2)], [torch.ones(3)]) == float("inf")
    assert relative_distance([torch.tensor([3.0])], [torch.tensor([2.0])]) == pytest.approx(0.5)


def test_the_reference_is_in_float64_where_it_can_be():
    reference, notes = make_reference(seeded(plain()), SPEC, as_tuple)
    assert reference.dtype == torch.float64 and notes == []

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = plain()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x.float())

    assert make_reference(seeded(Single()), SPEC, as_tuple)[0].dtype == torch.float32


def test_the_figures_stand_in_the_plan():
    teacher = make_teacher("net", seeded(plain()), SPEC)
    plan = make_plan(teacher, QuantizeConfig(), None)
    assert set(plan.checks) == {"capture", "folding", "student"}
    assert max(plan.checks.values()) < 1e-5


def test_patches_in_the_batch_are_no_boundary_between_units():
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            )
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            size = x.shape[0]
            parts = x.view(size, 3, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(size * 4, 3, 4, 4)
            return self.fc(self.net(parts).view(size, 4, -1).mean(1))

    teacher = make_teacher("net", Patches().eval(), SPEC)
    plan = make_plan(teacher, QuantizeConfig(), None)
    assert [unit.layers for unit in plan.units] == [("net.0", "net.2"), ("fc",)]
    images = torch.randn(6, 3, 8, 8)
    config = QuantizeConfig(reconstruct=False, weight_bits=8, activation_bits=8)
    assert stages.quantize(teacher, images, config).output_errors["output"] < 1e-3


def test_heads_and_stems_side_by_side_have_equal_bits():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
            self.body = nn.Conv2d(8, 8, 3)
            self.a, self.b = nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.body(torch.relu(torch.cat([self.left(x), self.right(x)], 1)))).mean((2, 3))
            return torch.cat([self.a(y), self.b(y)], 1)

    plan = make_plan(make_teacher("net", Two().eval(), SPEC), QuantizeConfig(), None)
    assert plan.bits.weights == {"left": 8, "right": 8, "body": 4, "a": 8, "b": 8}


def test_capture_keeps_the_callers_module():
    network = seeded(plain()).half()
    make_teacher("net", network, SPEC)
    assert next(network.parameters()).dtype == torch.float16
    capture(plain().eval(), SPEC)
