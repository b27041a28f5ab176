"""ReLUs computed by what reads them: a pass over the memory less, forward and backward."""

from __future__ import annotations

from torch import fx

from genie_cli.models.graph.capture import aten
from genie_cli.quantization.lsq import LearnedActivationQuantizer

_RELU = (aten.relu.default, aten.relu_.default)


def fuse_relus(student: fx.GraphModule) -> bool:
    """Take out, in place, each ReLU that only a learned activation quantizer or the output reads.

    The quantizer rectifies in its stead.

    Returns:
        Whether the output's ReLU was taken out, so that who reads the output has to rectify.
    """
    output = next(iter(reversed(student.graph.nodes)))
    rectify_output = False
    for node in list(student.graph.nodes):
        if node.op != "call_function" or node.target not in _RELU or len(node.users) != 1:
            continue
        (reader,) = node.users
        if reader is output and reader.args[0] is not node:  # one of several outputs
            continue
        if reader is not output:
            if reader.op != "call_module":
                continue
            quantizer = student.get_submodule(str(reader.target))
            if not isinstance(quantizer, LearnedActivationQuantizer) or quantizer.signed:
                continue
            quantizer.rectify = True
        rectify_output = rectify_output or reader is output
        node.replace_all_uses_with(node.args[0])
        student.graph.erase_node(node)
    student.graph.lint()
    student.recompile()
    return rectify_output
