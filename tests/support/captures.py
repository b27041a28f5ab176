"""The embedded network's graph, captured once per process: hundreds of tests and commands load it."""

from __future__ import annotations

import copy

from torch import fx, nn

from genie_cli.config import InputSpec
from genie_cli.models import teacher
from genie_cli.models.digits import DigitsResNet
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.tensors import named_tensors, set_tensor


def capture_digits_once() -> None:
    """From now on, in this process, a digits network gets a copy of the first one's graph with its own tensors."""
    known: dict[tuple[str, InputSpec], fx.GraphModule] = {}

    def capture_once(network: nn.Module, spec: InputSpec) -> fx.GraphModule:
        if type(network) is not DigitsResNet:
            return capture(network, spec)
        key = (repr(network), spec)
        if key not in known:
            known[key] = capture(copy.deepcopy(network), spec)
        graph_module, tensors = copy.deepcopy(known[key]), network.eval().state_dict()
        for name in named_tensors(graph_module):
            set_tensor(graph_module, name, tensors[name])
        return graph_module

    teacher.capture = capture_once
