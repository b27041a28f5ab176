"""Turn a model SPEC into a teacher: torchvision, timm, embedded and CIFAR names, and users' own factories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from genie_cli.config import InputSpec, ModelConfig
from genie_cli.errors import GenieError, InputError, UsageError, unknown_name
from genie_cli.models import timm_zoo, torchvision_zoo
from genie_cli.models.checkpoints import check_numbers, load_into, read_state, state_sha256
from genie_cli.models.cold_copy import copies, writable
from genie_cli.models.listed_names import own_names
from genie_cli.models.network_input import RecordedInput, assumptions, describe_input, input_warnings
from genie_cli.models.preparation import prepared
from genie_cli.models.reparameterization import reparameterized
from genie_cli.models.source import Source, looks_like_file, no_weights
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.models.tensor_kinds import check_kinds
from genie_cli.models.unwrapping import unwrapped
from genie_cli.runtime.user_code import load_code, prints_on_stderr

_ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class ZooEntry:
    """A name the zoo knows: its origin, default input, and number of parameters where that is cheap to find."""

    name: str
    origin: str
    input: InputSpec
    num_parameters: int | None


@prints_on_stderr()
def load_teacher(config: ModelConfig, recorded: RecordedInput | None = None) -> Teacher:
    """The teacher that `config` describes, with its weights.

    Args:
        config: the network, its weights and its input.
        recorded: the input that an artifact records; it holds where the artifact was made for this very network.

    Raises:
        UsageError: unknown model or weights name.
        InputError: weights that are missing or do not fit, or a network that cannot be captured.
    """
    source = _find(config.name, config.weights)
    network = _build(source, config.name)
    is_file = config.weights is not None and (source.named_state is None or looks_like_file(config.weights))
    if config.weights_key is not None and not is_file:
        raise UsageError(f"--weights-key '{config.weights_key}' picks from a weights file: name one with --weights.")
    if config.weights is None:
        state = source.default_state() if source.default_state is not None else None
        what = f"The default weights of '{config.name}'"
    elif not is_file and source.named_state is not None:
        state, what = source.named_state(config.weights), f"Weights '{config.weights}'"
    else:
        state, what = read_state(Path(config.weights)), f"Weights file {config.weights}"
    notes: list[str] = []
    if state is not None:
        notes = load_into(network, state, what, config.weights_key, source.ignored)
    else:  # a factory may bring weights of its own
        check_numbers(network.state_dict(), f"Model '{config.name}'")
    return _captured(config, source, network, _made_for(network, recorded), notes)


def module_teacher(network: nn.Module, config: ModelConfig, recorded: RecordedInput | None = None) -> Teacher:
    """The teacher that a module is; the module may have run, and is left as it is.

    Args:
        network: the network, with its weights, on any device.
        config: its name, and its input.
        recorded: the input that an artifact records; it holds where the artifact was made for this very network.

    Raises:
        UsageError: class scores or an input that the network does not have.
        InputError: weights that are not finite, or a network that cannot be captured.
    """
    first_error = None
    for copied in copies(network):
        own = unwrapped(copied)
        check_numbers(own.state_dict(), f"Network '{config.name}'")
        source = Source(lambda: own, InputSpec(), None, input_is_known=False)  # noqa: B023
        try:
            return _captured(config, source, own, _made_for(own, recorded))
        except InputError as error:
            first_error = first_error or error
    assert first_error is not None
    raise first_error


def _made_for(network: nn.Module, recorded: RecordedInput | None) -> RecordedInput | None:
    """The recorded input, if it is that of this very network."""
    # the hash of artifacts is that of the network as it is captured
    if recorded is None or recorded.teacher_sha256 != state_sha256(prepared(network)[0]):
        return None
    return recorded


@prints_on_stderr()
def load_architecture(config: ModelConfig) -> nn.Module:
    """The network of `config` without its weights."""
    return _build(_find(config.name, config.weights), config.name)


@prints_on_stderr()
def load_untrained(config: ModelConfig) -> Teacher:
    """The captured network of `config`, with its weights only where a local file is named.

    It shows a structure; nothing is downloaded.
    """
    if config.weights is not None and looks_like_file(config.weights):
        return load_teacher(config)
    source = _find(config.name, config.weights)
    return _captured(config, source, _build(source, config.name))


def _captured(
    config: ModelConfig,
    source: Source,
    network: nn.Module,
    recorded: RecordedInput | None = None,
    notes: Sequence[str] = (),
) -> Teacher:
    """The teacher of a network that has its weights, with `notes` on them and on its input."""
    name = display_name(config.name)
    spec = describe_input(config, source.input, network, recorded)
    assumed = [] if source.input_is_known else assumptions(name, config, network, spec, recorded)
    warnings = input_warnings(config, network, recorded)
    try:
        merged = reparameterized(name, network, spec) if config.reparameterize else None
        teacher = make_teacher(name, network if merged is None else merged.network, spec)
    except InputError as error:
        error.args = (" ".join([str(error), *assumed]),)
        raise
    logits = config.logits or (recorded.logits if recorded is not None else None)
    if logits is not None:
        teacher = teacher.reading(logits)
    return replace(
        teacher,
        notes=(*teacher.notes, *notes, *([] if merged is None else [merged.note]), *assumed),
        warnings=(*teacher.warnings, *warnings),
        source_sha256=None if merged is None else merged.source_sha256,
    )


def display_name(spec: str) -> str:
    """`spec` without folders: artifacts hold no path."""
    location, colon, factory = spec.rpartition(":")
    return f"{Path(location).name}:{factory}" if colon and location.endswith(".py") else spec


def known_names() -> list[str]:
    """Every plain name that `load_teacher` takes, embedded ones first; timm's have a prefix and a list of their own."""
    return [*own_names(), *torchvision_zoo.names()]


def zoo_entries() -> Iterator[ZooEntry]:
    """The entries of the zoo, listed without building a torchvision network."""
    from torchvision.models import get_model_weights

    for name in known_names():
        if name in torchvision_zoo.names():
            weights = torchvision_zoo.default_weights(name)
            parameters = weights.meta.get("num_params") if weights is not None else None
            entry_input = torchvision_zoo.input_of(weights)
            yield ZooEntry(name, f"torchvision, {len(get_model_weights(name))} weights", entry_input, parameters)
        else:
            source = _find(name, None)
            count = sum(p.numel() for p in source.build().parameters())
            yield ZooEntry(name, "embedded" if name == "digits_resnet" else "needs --weights", source.input, count)


def _build(source: Source, name: str) -> nn.Module:
    try:
        network = source.build()
    except GenieError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise InputError(f"Model '{name}' failed while it was built: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"Model '{name}' must return a torch.nn.Module, it returned {type(network).__name__}.")
    check_kinds(network, f"Model '{name}'")
    return writable(unwrapped(network))


def _find(name: str, weights: str | None) -> Source:
    if name.startswith(timm_zoo.PREFIX):
        return timm_zoo.source_of(name)
    if ":" in name:
        return Source(lambda: load_code(name, "Model")(), InputSpec(), None, input_is_known=False)
    if name == "digits_resnet":
        from genie_cli.models.digits import INPUT_SPEC, digits_resnet

        return Source(digits_resnet, INPUT_SPEC, lambda: read_state(_ASSETS / "digits_resnet.safetensors"))
    if name in own_names():
        from genie_cli.models.cifar import cifar_resnet

        depth = int(name.removeprefix("cifar_resnet"))
        return Source(lambda: cifar_resnet(depth), InputSpec(size=32, resize_size=32), lambda: no_weights(name))
    if name in torchvision_zoo.names():
        return torchvision_zoo.source_of(name, weights)
    told = ": `genie models` lists the names; timm's are timm:NAME, own code is FILE.py:FACTORY"
    raise unknown_name("model", name, known_names(), told)
