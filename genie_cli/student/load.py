"""Load a quantized folder as a network that runs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from torch import fx, nn

from genie_cli.artifacts.quantized import QuantizedArtifact
from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.config import ModelConfig
from genie_cli.errors import InputError
from genie_cli.models.cold_copy import copies
from genie_cli.models.graph.affine_map import has_affine_maps
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.equalization import add_channel_clips, has_channel_clips
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.outputs import structured
from genie_cli.models.graph.slopes import slopes
from genie_cli.models.graph.tensors import named_tensors, set_tensor
from genie_cli.models.preparation import prepared
from genie_cli.models.reparameterization import reparameterized
from genie_cli.models.teacher import Teacher
from genie_cli.models.unwrapping import unwrapped
from genie_cli.models.zoo import load_architecture
from genie_cli.runtime.modes import modes_of_commands
from genie_cli.student.bit_plan import ActivationSite, BitPlan
from genie_cli.student.build import insert_quantizers
from genie_cli.student.formats import activation_format, weight_format
from genie_cli.student.integer_kernels import use_integer_kernels
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight
from genie_cli.student.protocol import PROTOCOLS
from genie_cli.student.tensor_names import tensor_names


@modes_of_commands()
def load(model: str | nn.Module, folder: str | Path, *, keep_weights: bool = True) -> nn.Module:
    """The quantized network in `folder`, ready to run; the teacher's weights are not needed.

    Args:
        model: a model SPEC, or the network as a module, which may have run (its weights are ignored and left alone).
        folder: written by ``genie quantize``.
        keep_weights: weights are dequantized at the first call and kept in floats, which makes later calls faster;
            False: at each call, which takes less memory.

    Returns:
        A module in evaluation mode from ``[B, C, H, W]`` (normalised) to what the network returns: tensors in the
        same dictionaries, tuples and so on. Under protocol ``integer`` it computes as integer kernels do. It is moved,
        cast (``half()``, ``bfloat16()``), copied and pickled as any module; what it keeps is dropped then.

    Raises:
        InputError: a damaged folder, or one of another network.
        UsageError: unknown model.
    """
    artifact = load_quantized(Path(folder))
    return keeping_weights(computing(load_simulated(model, artifact), artifact), keep_weights)


def load_simulated(model: str | nn.Module, artifact: QuantizedArtifact) -> fx.GraphModule:
    """As `load`, with layers that compute in floats, under any protocol."""
    if not isinstance(model, nn.Module):
        return _restored(load_architecture(ModelConfig(name=model)), artifact)
    first_error = None
    for network in copies(model):
        try:
            return _restored(unwrapped(network), artifact)
        except InputError as error:
            first_error = first_error or error
    assert first_error is not None
    raise first_error


def computing(student: fx.GraphModule, artifact: QuantizedArtifact) -> fx.GraphModule:
    """The network of a folder, in place, as it is evaluated: under protocol ``integer`` as integer kernels compute."""
    protocol = PROTOCOLS.get(artifact.metadata.protocol)
    if protocol is not None and protocol.every_tensor:
        use_integer_kernels(student)
    return student


def keeping_weights(network: fx.GraphModule, is_kept: bool) -> fx.GraphModule:
    """Say in place whether evaluation mode keeps dequantized weights, and return the network."""
    for module in network.modules():
        if isinstance(module, IntegerWeight):
            module.keeps_value = is_kept
    return network


def _restored(network: nn.Module, artifact: QuantizedArtifact) -> fx.GraphModule:
    if artifact.metadata.source_sha256 is not None:
        with suppress(InputError):  # a network that is merged already, whose methods need not take a second call
            network = reparameterized(artifact.metadata.teacher, network, artifact.metadata.input).network
    graph = capture(prepared(network)[0], artifact.metadata.input)
    return structured(restore(_folded_as(graph, artifact), artifact))


def load_student(teacher: Teacher, artifact: QuantizedArtifact) -> fx.GraphModule:
    """The quantized network of this very teacher, computed in floats, with the outputs of its graph.

    `structured` puts the rest on.

    Raises:
        InputError: the artifact was made for another teacher.
    """
    if artifact.metadata.teacher_sha256 != teacher.sha256:
        if artifact.metadata.network_sha256 in teacher.known_sha256:
            flag = "leave out" if artifact.metadata.source_sha256 is None else "give"
            is_merged = "as it is" if artifact.metadata.source_sha256 is None else "reparameterized"
            raise InputError(f"The quantized folder is of '{teacher.name}' {is_merged}: {flag} --reparameterize.")
        raise InputError(
            f"The quantized folder was made for '{artifact.metadata.teacher}' with weights "
            f"{artifact.metadata.teacher_sha256[:12]}, and this teacher '{teacher.name}' has {teacher.sha256[:12]}: "
            "name the same --model and --weights as at its quantization."
        )
    return restore(_folded_as(teacher.graph, artifact), artifact)


def _folded_as(graph: fx.GraphModule, artifact: QuantizedArtifact) -> fx.GraphModule:
    """A captured graph folded as the stored one was."""
    as_affine_maps = has_affine_maps(artifact.parameters)
    return fold_batch_norms(graph, keep=artifact.metadata.unfolded, as_affine_maps=as_affine_maps).graph


def restore(folded: fx.GraphModule, artifact: QuantizedArtifact) -> fx.GraphModule:
    """Put the artifact's weights, step sizes and other tensors into a folded graph.

    Raises:
        InputError: layers, sites, tensors or shapes that the graph does not have, or the reverse.
    """
    if has_channel_clips(artifact.parameters):
        add_channel_clips(folded)
    layers = {layer.name: layer.weight_key for layer in weight_layers(folded)}
    own_slopes = {slope.name: slope.key for slope in slopes(folded)}
    tensors = named_tensors(folded)
    nodes = tensor_names(folded)
    _compare("weight layer", set(layers), set(artifact.weights) - set(own_slopes))
    _compare("activation site", set(artifact.activations) & set(nodes), set(artifact.activations))
    # folders that an earlier genie wrote have slopes in float
    stored = {**layers, **{name: key for name, key in own_slopes.items() if name in artifact.weights}}
    plain = set(tensors) - set(stored.values())
    _compare("tensor", plain, set(artifact.parameters))
    for key, wanted, found in [
        *((name, tensors[key].shape, artifact.weights[name].codes.shape) for name, key in stored.items()),
        *((key, tensors[key].shape, artifact.parameters[key].shape) for key in sorted(plain)),
    ]:
        if wanted != found:
            raise InputError(
                f"The quantized folder does not fit this network: '{key}' has shape {tuple(found)}, "
                f"not {tuple(wanted)}."
            )
    for key in plain:
        set_tensor(folded, key, artifact.parameters[key])
    weights = {
        name: IntegerWeight(
            weight.codes, weight.scale, weight.zero_point, weight_format(weight.bits, weight.grid, weight.axis)
        )
        for name, weight in artifact.weights.items()
    }
    activations = {
        name: ActivationQuantizer(step.step_size, activation_format(step.bits, step.signed))
        for name, step in artifact.activations.items()
    }
    sites = sorted(
        (ActivationSite(name, nodes[name].name, step.bits) for name, step in artifact.activations.items()),
        key=lambda site: site.name,
    )
    symmetric = frozenset(name for name, weight in artifact.weights.items() if weight.grid == "symmetric")
    plan = BitPlan({name: artifact.weights[name].bits for name in layers}, tuple(sites), symmetric & layers.keys())
    return insert_quantizers(folded, plan, weights, activations).eval()


def _compare(what: str, network: set[str], folder: set[str]) -> None:
    for names, place in ((network - folder, "the folder lacks"), (folder - network, "the network lacks")):
        if names:
            raise InputError(
                f"The quantized folder does not fit this network: {place} {len(names)} {what}(s), "
                f"first '{min(names)}'. Check --model."
            )
