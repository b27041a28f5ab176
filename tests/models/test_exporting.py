"""Harmless names, ways to take the images and uses of `.data` are captured; a failure names its own cause."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from genie_cli.app import app
from genie_cli.config import InputSpec
from genie_cli.errors import InputError
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.layers import weight_layers

SPEC = InputSpec(num_channels=1, size=8, mean=(0.0,), std=(1.0,))


class Named(nn.Module):
    """Layers of any names, at the top and in a dictionary."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.names = names
        self.inner = nn.ModuleDict()
        for name in names:
            self._modules[name] = nn.Conv2d(1, 1, 3, padding=1)
            self.inner._modules[name] = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
        self.head = nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = self.inner._modules[name](self._modules[name](x)).relu()
        return self.head(x.mean((2, 3)))


def check(network: nn.Module) -> list[str]:
    """Compare the captured network with the module; returns the names of its layers."""
    state = dict(network.state_dict())
    graph, images = capture(network, SPEC), torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(graph(images), network(images), atol=1e-6)
    assert list(network.state_dict()) == list(state)
    return [layer.name for layer in weight_layers(graph)]


NAMES = {  # name of a module -> its name in the graph at the top, and inside
    "class": ("class_", "class_"),
    "None": ("None_", "None_"),
    "code": ("code_", "code"),
    "graph": ("graph_", "graph"),
    "meta": ("meta_", "meta"),
    "print_readable": ("print_readable_", "print_readable"),
    'a"b': ("a_b_", "a_b_"),
    "c\\d": ("c_d_", "c_d_"),
    "e\nf": ("e_f_", "e_f_"),
    "\N{MICRO SIGN}": ("__", "__"),
    "two.parts": ("two.parts", "two.parts"),
    "x.y.z": ("x.y.z", "x.y.z"),
    "3x3": ("3x3", "3x3"),
    "stage 1": ("stage 1", "stage 1"),
    "größe": ("größe", "größe"),
    "self": ("self", "self"),
}


def test_a_module_may_have_any_name() -> None:
    wanted = [name for own, inner in NAMES.values() for name in (own, f"inner.{inner}.0")]
    assert check(Named(*NAMES)) == [*wanted, "head"]


def test_names_stay_apart() -> None:
    names = ["class", "class_", "class__", "in", 'a"b', "a'b", "a.b", "a.c"]
    assert len(set(check(Named(*names)))) == 2 * len(names) + 1


def test_a_network_of_such_names_goes_through_all_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "named_network.py").write_text(
        "from tests.models.test_exporting import Named\n\n\ndef build():\n    return Named('class', 'code', 'a.b')\n"
    )
    save_file({"images": torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)}, tmp_path / "images.safetensors")
    model = (
        "--model",
        "named_network.py:build",
        "--num-channels",
        "1",
        "--input-size",
        "8",
        "--mean",
        "0",
        "--std",
        "1",
    )
    for command in (
        ("synthesize", *model, "--n", "2", "--num-steps", "2", "--batch-size", "2", "--out", "made.safetensors"),
        ("quantize", *model, "--images", "images.safetensors", "--num-steps", "3", "--batch-size", "2"),
        ("verify", "quantized", "--model", "named_network.py:build"),
    ):
        outcome = CliRunner().invoke(app, command)
        assert outcome.exit_code == 0, outcome.output


# --- forward's arguments


class Forwards(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Named("conv")

    def forward(self, *args: Tensor, **options: Any) -> Tensor:
        return self.net(*args, **options)


class Optional(Forwards):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        return self.net(x) * scale


class ByKeyword(Forwards):
    def forward(self, *, image: Tensor) -> Tensor:
        return self.net(image)


@pytest.mark.parametrize("kind", [Forwards, Optional])
def test_forward_may_take_more_than_images(kind: Callable[[], nn.Module]) -> None:
    assert "net.conv" in check(kind())


# --- .data


class Attention(Forwards):
    """Scales channels by the share of their batch norm's weight (after normalisation-based attention modules)."""

    def forward(self, x: Tensor) -> Tensor:
        norm = self.net.inner["conv"][1]
        share = norm.weight.data.abs() / norm.weight.data.abs().sum()
        return self.net(x * share.view(1, -1, 1, 1)) + self.net.head.weight.data.mean()


class Overwrites(Forwards):
    def forward(self, x: Tensor) -> Tensor:
        self.net.conv.weight.data = self.net.conv.weight.data / self.net.conv.weight.data.norm()
        return self.net(x)


class Clips(Forwards):
    def forward(self, x: Tensor) -> Tensor:
        self.net.conv.weight.data.clamp_(-0.01, 0.01)
        return self.net(x)


def test_data_may_be_read() -> None:
    check(Attention())


# --- failures


class Masked(Forwards):
    def forward(self, x: Tensor, mask: Tensor, *more: Tensor, scale: float = 1.0, **options: Any) -> Tensor:
        return self.net(x * mask)


class Branches(Forwards):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if x.mean() > 0 else -self.net(x)


class Misspelt(Forwards):
    def forward(self, x: Tensor) -> Tensor:
        return self.nett(x)


class Narrow(Forwards):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1) @ torch.ones(5, 5))


class Numpy(Forwards):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * float(x.detach().numpy().shape[1])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Overwrites, r"its forward\(\) changes a tensor through .data. Let it compute a new tensor"),
        (Clips, r"its forward\(\) changes a tensor through .data"),
        (ByKeyword, r"its forward\(\) takes 'image' by keyword alone. Let it take the images as its first argument"),
        (Masked, r"its forward\(\) needs 'mask' beside the images. Give them defaults, or wrap the network"),
        (Branches, r"decides by the values of the images: take data-dependent control flow out"),
        (Misspelt, r"AttributeError: 'Misspelt' object has no attribute 'nett'. This is an error of its forward\(\)"),
        (Narrow, r"shapes cannot be multiplied.*Check --input-size and --num-channels"),
        (Numpy, r"Its forward\(\) runs, and torch.export cannot follow it there"),
        (lambda: torch.jit.script(nn.Linear(8, 3)), r"it is a TorchScript module. Let the factory return the Python"),
    ],
    ids=[
        "replaced data",
        "changed data",
        "keyword",
        "more inputs",
        "control flow",
        "misspelt",
        "size",
        "numpy",
        "script",
    ],
)
def test_a_failure_names_its_cause(kind: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=rf"cannot be captured for input \(1, 8, 8\): .*{message}"):
        capture(kind(), SPEC)
