"""Networks that return more than a tensor of class scores: the graph's outputs, and the structure that is put on."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from genie_cli.errors import InputError, UsageError
from genie_cli.models.graph.cuts import output_nodes
from genie_cli.models.graph.output_layout import Layout
from genie_cli.models.graph.outputs import named_outputs, structured
from genie_cli.models.graph.placement import move
from genie_cli.models.graph.tensors import get_tensor, set_tensor
from genie_cli.models.teacher import Teacher, make_teacher
from tests.support.networks import plain_input

Pair = namedtuple("Pair", "first second")


@dataclass
class Found:
    """A dataclass that torch.export knows."""

    scores: Tensor
    boxes: Tensor


@dataclass
class Unknown:
    """One that it does not."""

    scores: Tensor


torch.export.register_dataclass(Found)


class Net(nn.Module):
    """A map ``y``, features ``f`` and scores ``s``, of which `give` makes what is returned."""

    def __init__(self, give: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.give = nn.Conv2d(2, 4, 3), nn.Linear(4, 7), give
        self.register_buffer("anchors", torch.arange(5.0))

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        f = y.mean((2, 3))
        return self.give(self, x, y, f, self.fc(f))


def teacher_of(give: Callable[..., Any], logits: str | None = None) -> Teacher:
    teacher = make_teacher("net.py:make", Net(give), plain_input(2, (6, 9)))
    return teacher if logits is None else teacher.reading(logits)


TREES: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "scores": (lambda n, x, y, f, s: s, ["output [B, 7]"]),
    "map": (lambda n, x, y, f, s: y, ["output [B, 4, 4, 7]"]),
    "a number per image": (lambda n, x, y, f, s: s.sum(1), ["output [B]"]),
    "a number per image, squeezed": (lambda n, x, y, f, s: y.mean((1, 2, 3), keepdim=True).squeeze(), ["output [B]"]),
    "tuple of one": (lambda n, x, y, f, s: (s,), ["0 [B, 7]"]),
    "dict": (lambda n, x, y, f, s: {"scores": s, "map": y}, ["scores [B, 7]", "map [B, 4, 4, 7]"]),
    "ordered dict": (lambda n, x, y, f, s: OrderedDict(out=y, aux=y * 2), ["out [B, 4, 4, 7]", "aux [B, 4, 4, 7]"]),
    "named tuple": (lambda n, x, y, f, s: Pair(s, y), ["first [B, 7]", "second [B, 4, 4, 7]"]),
    "dataclass": (lambda n, x, y, f, s: Found(s, y), ["scores [B, 7]", "boxes [B, 4, 4, 7]"]),
    "nested": (
        lambda n, x, y, f, s: [{"cls": s, "maps": (y, y + 1)}, f, []],
        ["0.cls [B, 7]", "0.maps.0 [B, 4, 4, 7]", "0.maps.1 [B, 4, 4, 7]", "1 [B, 4]"],
    ),
    "twice": (lambda n, x, y, f, s: (s, y, s), ["0 [B, 7]", "1 [B, 4, 4, 7]"]),
    "time first": (lambda n, x, y, f, s: y.flatten(2).permute(2, 0, 1), ["output [28, B, 4]"]),
    "batch last": (lambda n, x, y, f, s: s.t(), ["output [7, B]"]),
    "rows of all images": (lambda n, x, y, f, s: y.flatten(2).transpose(1, 2).reshape(-1, 4), ["output [28*B, 4]"]),
    "values of all images": (lambda n, x, y, f, s: s.reshape(-1), ["output [7*B]"]),
    "the images": (lambda n, x, y, f, s: {"image": x, "scores": s}, ["scores [B, 7]"]),
    "constants": (
        lambda n, x, y, f, s: {"scores": s, "anchors": n.anchors, "twice": n.anchors * 2, "weight": n.fc.weight},
        ["scores [B, 7]"],
    ),
    "plain values": (lambda n, x, y, f, s: {"s": s, "stride": 8, "aux": None, "kind": "cls"}, ["s [B, 7]"]),
}


@pytest.mark.parametrize("name", TREES)
def test_the_structure_is_that_of_the_network(name: str) -> None:
    give, described = TREES[name]
    teacher = teacher_of(give)
    assert [tensor.described() for tensor in teacher.outputs.tensors] == described
    nodes = output_nodes(teacher.graph)
    assert len(set(nodes)) == len(nodes) == len(described)
    for count in (1, 2, 5):
        images = torch.randn(count, 2, 6, 9)
        with torch.no_grad():
            wanted, found = Net(give)(images), structured(teacher.graph)(images)
        if "squeezed" in name and count == 1:
            wanted = wanted.view(
                1
            )  # the network takes the batch of a single image away; its number of dimensions stays
        (own, own_spec), (other, spec) = pytree.tree_flatten(found), pytree.tree_flatten(wanted)
        assert own_spec == spec
        for one, two in zip(own, other, strict=True):
            assert torch.equal(one, two) if isinstance(two, Tensor) else one == two
        shapes = {tuple(tensor.shape) for tensor in teacher.outputs.flat(wanted)}
        assert shapes == {(count, *tensor.shape) for tensor in teacher.outputs.tensors}


@pytest.mark.parametrize(
    "give", [lambda n, x, y, f, s: y.argmax(1), lambda n, x, y, f, s: {"on": y > 0, "top": s.argmax(1)}]
)
def test_decided_classes_are_those_of_the_scores(give: Callable[..., Any]) -> None:
    """The graph ends with the scores, which have a distance; what is decided of them is computed behind it."""
    teacher, images = teacher_of(give), torch.randn(3, 2, 6, 9)
    assert all(node.meta["val"].is_floating_point() for node in output_nodes(teacher.graph))
    with torch.no_grad():
        found, wanted = structured(teacher.graph)(images), Net(give)(images)
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(AssertionError):  # another network decides otherwise, and the check of rewrites sees it
        changed = copy.deepcopy(teacher.graph)
        set_tensor(changed, "conv.bias", get_tensor(changed, "conv.bias") + torch.tensor([9.0, 0, 0, -9]))
        assert teacher.reference.holds(teacher.reference.distance(changed))


def test_what_is_behind_the_outputs_is_on_the_graph_s_device() -> None:
    teacher = teacher_of(lambda n, x, y, f, s: s.argmax(1) + torch.ones(x.shape[0], dtype=torch.int64))
    assert torch.equal(
        structured(teacher.graph)(torch.zeros(3, 2, 6, 9)), teacher.graph(torch.zeros(3, 2, 6, 9)).argmax(1) + 1
    )
    moved = structured(move(copy.deepcopy(teacher.graph), torch.device("meta")))
    devices = {node.kwargs["device"] for node in moved.graph.nodes if node.kwargs.get("device") is not None}
    assert devices == {torch.device("meta")}


def test_a_single_tensor_has_nothing_around_it() -> None:
    teacher = teacher_of(TREES["scores"][0])
    assert structured(teacher.graph) is teacher.graph
    assert teacher.notes == ()


def test_structured_networks_share_their_tensors_and_leave_the_graph_as_it_was() -> None:
    teacher = teacher_of(TREES["dict"][0])
    before = str(teacher.graph.graph), list(teacher.graph.state_dict())
    whole = structured(teacher.graph)
    assert (str(teacher.graph.graph), list(teacher.graph.state_dict())) == before
    assert {k: v.data_ptr() for k, v in whole.state_dict().items()} == {
        k: v.data_ptr() for k, v in teacher.graph.state_dict().items()
    }


@pytest.mark.parametrize(
    ("give", "note"),
    [
        (lambda n, x, y, f, s: (s, y.sum()), r"'1' is computed behind.*the shape \[\] has no row for each image"),
        (lambda n, x, y, f, s: (s, y.mean(0)), r"'1' is computed behind.*the shape \[4, 4, 7\] has no row"),
        (lambda n, x, y, f, s: (s, f.T @ f), r"'1' is computed behind.*the shape \[4, 4\] has no row"),
        (lambda n, x, y, f, s: (s, x.shape[0]), "'1' is computed behind.*the value is no tensor"),
        (lambda n, x, y, f, s: (s, s.argmax(1)), "'1' is computed behind.*int64"),
        (lambda n, x, y, f, s: (s, s + f.mean() > 0), "'1' is computed behind.*bool"),
        (lambda n, x, y, f, s: (s, n.fc(y.mean((0, 2, 3)))), r"'1' is left out, None.*the shape \[7\] has no row"),
        (lambda n, x, y, f, s: (s, 8), "'1' is no tensor: 8 is returned"),
        (lambda n, x, y, f, s: (s, n.anchors), "'1' does not depend on the images"),
    ],
)
def test_what_is_left_as_it_is_is_told(give: Callable[..., Any], note: str) -> None:
    teacher = teacher_of(give)
    (told,) = teacher.notes
    assert re.search(note, told), told
    images = torch.randn(3, 2, 6, 9)
    with torch.no_grad():
        (_, found), (_, wanted) = structured(teacher.graph)(images), Net(give)(images)
    if "left out" in told:
        assert found is None
    elif isinstance(wanted, Tensor):
        torch.testing.assert_close(found, wanted)
    else:
        assert found == wanted


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda n, x, y, f, s: {}, "returns no tensor.*it returns nothing"),
        (lambda n, x, y, f, s: s.sum(), "returns no tensor.*no row for each image"),
        (lambda n, x, y, f, s: y[y > 0], "shape of what it returns depends.*Give genie the part before"),
        (lambda n, x, y, f, s: torch.nonzero(y), "shape of what it returns depends"),
        (lambda n, x, y, f, s: [row[row > 0] for row in y], "index by a mask depends on the images.*genie_cli.load"),
        (
            lambda n, x, y, f, s: torch.stack([row * 2 for row in y]),
            "fixes the number of images.*all images of a batch",
        ),
        (lambda n, x, y, f, s: Unknown(s), r"returns a Unknown.*torch.export.register_dataclass\(Unknown\)"),
        (lambda n, x, y, f, s: torch.cat([y, y * 2]), "depends on the other images of its batch"),
    ],
)
def test_a_network_that_cannot_be_taken(give: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        teacher_of(give)


# --- class scores


@pytest.mark.parametrize(
    ("give", "asked", "found"),
    [
        (lambda n, x, y, f, s: s, None, ("output", 0, 7)),
        (lambda n, x, y, f, s: s.sum(1), None, ("output", 0, 1)),
        (lambda n, x, y, f, s: {"map": y, "cls": s}, None, ("cls", 1, 7)),
        (lambda n, x, y, f, s: {"features": f, "logits": s}, None, ("logits", 1, 7)),
        (lambda n, x, y, f, s: {"features": f, "cls": s}, None, None),
        (lambda n, x, y, f, s: {"features": f, "cls": s}, "cls", ("cls", 1, 7)),
        (lambda n, x, y, f, s: {"head": {"cls": s}, "f": f}, "head.cls", ("head.cls", 0, 7)),
        (lambda n, x, y, f, s: (s, y, s, f), "2", ("2", 0, 7)),
        (lambda n, x, y, f, s: y, None, None),
        (lambda n, x, y, f, s: s.reshape(-1), None, None),
    ],
)
def test_the_class_scores(give: Callable[..., Any], asked: str | None, found: tuple[str, int, int] | None) -> None:
    teacher = teacher_of(give, asked)
    logits = teacher.logits
    assert (None if logits is None else (logits.name, logits.place, logits.num_classes)) == found
    if logits is not None:
        images = torch.randn(3, 2, 6, 9)
        with torch.no_grad():
            wanted = Net(lambda n, x, y, f, s: s if logits.num_classes == 7 else s.sum(1, keepdim=True))(images)
            assert torch.equal(logits.of(teacher.graph)(images), wanted)


@pytest.mark.parametrize(
    ("asked", "message"),
    [("clas", "Unknown output 'clas'.*Did you mean 'cls'"), ("map", r"--logits map.*\[B, 4, 4, 7\]")],
)
def test_class_scores_that_are_none(asked: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        teacher_of(lambda n, x, y, f, s: {"map": y, "cls": s}, asked)


# --- properties


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(1, 3), max_size=3), st.integers(0, 3), st.integers(1, 3))
def test_a_layout_and_back(batch: int, others: list[int], place: int, rows: int) -> None:
    if place and rows > 1:
        rows = 1
    place = min(place, len(others))
    shape = [*others[:place], batch * rows, *others[place:]]
    returned = torch.arange(float(torch.Size(shape).numel())).view(shape)
    normal = Layout(len(shape), place, rows).normal(returned)
    assert normal.shape[0] == batch and normal.dim() >= 2
    assert torch.equal(Layout(len(shape), place, rows).returned(normal), returned)


_TENSORS = st.builds(lambda: torch.zeros(1))
_RETURNED = st.recursive(
    _TENSORS | st.integers() | st.none(),
    lambda children: (
        st.lists(children, max_size=3)
        | st.lists(children, max_size=3).map(tuple)
        | st.dictionaries(st.text("abc", min_size=1, max_size=3), children, max_size=3)
        | st.tuples(children, children).map(lambda pair: Pair(*pair))
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(_RETURNED)
def test_a_name_leads_to_its_tensor(returned: Any) -> None:
    named = named_outputs(returned)
    assert len(named) == sum(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(returned))
    for name, tensor in named:
        found = returned
        for part in name.split(".") if found is not tensor else ():
            found = (
                found[part]
                if isinstance(found, dict)
                else getattr(found, part, None)
                if hasattr(found, part)
                else found[int(part)]
            )
        assert found is tensor
