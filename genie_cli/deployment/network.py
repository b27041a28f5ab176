"""An exported file as a network, whose outputs are those of its teacher's graph: for an evaluation in its runtime."""

from __future__ import annotations

from operator import getitem
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from genie_cli.config import InputSpec
from genie_cli.deployment.metadata import ExportMetadata
from genie_cli.deployment.runtimes import FORMATS, Runtime, format_of, open_runtime, read_exported
from genie_cli.errors import InputError
from genie_cli.models.graph.output_layout import Layout
from genie_cli.models.graph.outputs import OutputTree, copy_structure, named_outputs, outputs_of, structured
from genie_cli.models.teacher import Teacher


class RuntimeNetwork(nn.Module):
    """A file that its runtime runs: normalised images to the outputs of the graph that it was made of."""

    def __init__(self, runtime: Runtime, metadata: ExportMetadata, tree: OutputTree) -> None:
        """Keep the loaded file."""
        super().__init__()
        self._runtime, self._metadata = runtime, metadata
        self._places: dict[int, tuple[int, Layout]] = {}
        for leaf in tree.leaves:
            if leaf.place is not None and leaf.layout is not None and leaf.name in metadata.outputs:
                self._places.setdefault(leaf.place, (metadata.outputs.index(leaf.name), leaf.layout))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the normal form for images ``[B, C, H, W]``."""
        taken = images.cpu().contiguous()
        if self._metadata.input_form == "pixels":
            spec = self._metadata.input
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
            taken = ((taken * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        try:
            found = self._runtime.run(taken.numpy())
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{self._runtime.name} {self._runtime.version} cannot run the file: {reason}.") from error
        outputs = []
        for _, (place, layout) in sorted(self._places.items()):
            outputs.append(layout.normal(torch.from_numpy(found[place].copy())).to(images.device))
        return tuple(outputs)


def is_exported(path: Path) -> bool:
    """True if a path is named as an exported file, not as the folder of a quantized network."""
    return path.suffix in FORMATS and not path.is_dir()


def open_exported(path: Path, num_threads: int) -> tuple[Runtime, ExportMetadata]:
    """An exported file, loaded in its runtime, and what it says of itself.

    Raises:
        UsageError: the runtime is not installed.
        InputError: it cannot be read, or genie did not write it.
    """
    runtime = open_runtime(read_exported(path), format_of(path), str(path), num_threads)
    if runtime.metadata is None:
        raise InputError(f"{path} does not say which network it is: give a file that 'genie export' wrote.")
    return runtime, runtime.metadata


def _sizes(spec: InputSpec) -> str:
    return "x".join(map(str, spec.shape))


def as_student(runtime: Runtime, metadata: ExportMetadata, teacher: Teacher) -> fx.GraphModule:
    """A graph that computes the outputs of the teacher's by running the file.

    Raises:
        InputError: the file is of another network, or takes other images.
    """
    tree = outputs_of(teacher.graph)
    names = tuple(name for name, _ in named_outputs(structured(teacher.graph)(torch.zeros(2, *teacher.input.shape))))
    if metadata.teacher_sha256 not in teacher.known_sha256 or names != metadata.outputs:
        raise InputError(
            f"The exported file was made for '{metadata.teacher}' with weights {metadata.teacher_sha256[:12]}, and "
            f"this teacher '{teacher.name}' has {teacher.sha256[:12]}: name the --model and --weights of its export."
        )
    own, given = metadata.input, teacher.input
    if own.shape != given.shape:
        raise InputError(
            f"The exported file takes images of {_sizes(own)}, and this teacher of {_sizes(given)}: leave out "
            "--input-size, or export it again with it."
        )
    if metadata.input_form == "pixels" and (own.mean, own.std) != (given.mean, given.std):
        raise InputError(
            f"The exported file takes pixels and normalises them itself, with mean {own.mean} and standard deviation "
            f"{own.std}, and --mean and --std are {given.mean} and {given.std}: leave them out, or export it again "
            "with them."
        )
    root = nn.Module()
    root.add_module("runtime", RuntimeNetwork(runtime, metadata, tree))
    graph = fx.Graph()
    found = graph.call_module("runtime", (graph.placeholder("images"),))
    outputs = tuple(graph.call_function(getitem, (found, place)) for place in range(len(tree.tensors)))
    graph.output(outputs[0] if len(outputs) == 1 else outputs)
    network = fx.GraphModule(root, graph)
    copy_structure(teacher.graph, network)
    return network.eval()
