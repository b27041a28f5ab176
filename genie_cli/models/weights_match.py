"""A network's tensors among those of a weights file: under any wrappers and prefixes, where there is one choice.

A file's tensors are named by their place in it: ``state_dict/model.conv1.weight`` is ``model.conv1.weight`` of the
mapping ``state_dict``. A network's tensors are found where one beginning stands before all of their names.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from genie_cli.errors import InputError, nearest
from genie_cli.models.tensor_kinds import kind_problem

COUNTER = "num_batches_tracked"
"""Batch norm's training counter: it has no part in inference, and many files leave it out."""
TOP = "."
"""The place of what lies in no mapping and behind no prefix."""
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Names that wrappers of a part of a network add inside of a tensor's name."""
_MOST_PREFIXES = 4
"""More first parts of names than these are a network's modules, and no prefixes."""
_MOST_LISTED = 8


@dataclass(frozen=True)
class Match:
    """A network's tensors as a file has them.

    Attributes:
        place: their place in the file, such as ``state_dict.model``, or `TOP`.
        tensors: the network's name -> tensor; of a tensor with several names, each that the file holds.
        others: the file's names beside them that are not the network's.
    """

    place: str
    tensors: Mapping[str, Tensor]
    others: Sequence[str] = ()


def find_weights(
    model: nn.Module, state: Mapping[str, Tensor], source: str, key: str | None = None, ignored: tuple[str, ...] = ()
) -> Match:
    """The tensors of `state` that are those of `model`.

    Wrappers and prefixes may stand before the names, in any order, and wrappers of parts inside of them. Of a tensor
    that the network holds under several names, one is enough. An average that holds parameters alone, chosen by
    `key`, takes the buffers from the whole set of weights in the file.

    Args:
        model: the network.
        state: a file's tensors, see `read_state`.
        source: names the file in messages.
        key: the place of the tensors in the file; None: the file leaves one choice.
        ignored: beginnings of names that the network leaves out.

    Raises:
        InputError: weights of another network, several sets of weights that differ, or nothing under `key`.
    """
    tries = _tries(model, state if key is None else _under(state, key, source), ignored)
    whole = _distinct([each for each in tries if each.is_whole])
    averages = _distinct([each for each in tries if each.has_parameters and not each.is_whole], whole)
    if len(whole) + len(averages) > 1:
        places = ", ".join(each.match.place for each in [*whole, *averages])
        raise InputError(
            f"{source} holds several sets of weights of this network, which differ: {places}. "
            "Choose one with --weights-key."
        )
    if whole:
        return whole[0].match
    if averages and key is not None:
        (average,) = averages
        buffers = _distinct([each for each in _tries(model, state, ignored) if each.is_whole])
        if len(buffers) == 1:
            return Match(average.match.place, {**buffers[0].match.tensors, **average.match.tensors})
    best = max(tries, key=lambda each: len(each.match.tensors))
    if best.has_names and best.unusable:
        raise InputError(f"{source} does not fit this network: {best.unusable[0]}.")
    raise InputError(f"{source} does not fit this network: {best.problems()}. {_advice(state, key)}")


@dataclass(frozen=True)
class _Try:
    """The tensors behind one beginning of names, and what is wrong with them.

    Attributes:
        match: the tensors that have the network's names.
        missing: names of the network, one per tensor.
        missing_parameters: True if one of these is no buffer.
        unexpected: names of the file.
        unlike: shapes that differ, in words.
        unusable: tensors of a kind that cannot become the network's, in words.
    """

    match: Match
    missing: Sequence[str]
    missing_parameters: bool
    unexpected: Sequence[str]
    unlike: Sequence[str]
    unusable: Sequence[str]

    @property
    def has_parameters(self) -> bool:
        """True if nothing but buffers is missing, and all else fits."""
        return self.has_names and not self.unusable

    @property
    def has_names(self) -> bool:
        """True if nothing but buffers is missing, and names and shapes fit."""
        return bool(self.match.tensors) and not (self.missing_parameters or self.unexpected or self.unlike)

    @property
    def is_whole(self) -> bool:
        """True if these are all of the network's tensors."""
        return self.has_parameters and not self.missing

    def problems(self) -> str:
        """Words for all that is wrong."""
        problems = []
        if self.missing:
            problems.append(f"{len(self.missing)} keys are missing, first '{self.missing[0]}'")
        if self.unexpected:
            problems.append(f"{len(self.unexpected)} are unexpected, first '{self.unexpected[0]}'")
        return "; ".join([*problems, *self.unlike[:1], *self.unusable[:1]])


def _tries(model: nn.Module, state: Mapping[str, Tensor], ignored: tuple[str, ...]) -> list[_Try]:
    """The most promising beginnings of names, in the first way to read the names in which one fits."""
    tries: list[_Try] = []
    for spell, spell_own in _spellings(model):
        spelt = {spell(_dotted(name)): name for name in state}
        if len(spelt) < len(state):
            continue  # two tensors would have one name
        own = {spell_own(_dotted(name)): name for name in _tensors(model)}
        counts: Counter[str] = Counter()
        for name in spelt:
            counts.update(name.removesuffix(end) for end in _ends(name) if end in own and not end.endswith(COUNTER))
        most = max(counts.values(), default=0)
        beginnings = sorted((b for b in counts if 2 * counts[b] >= most), key=len)
        found = [_try(model, own, beginning, spelt, state, ignored) for beginning in beginnings or [""]]
        if any(each.has_parameters for each in found):
            return found
        tries += found
    return tries


def _spellings(model: nn.Module) -> Iterator[tuple[Callable[[str], str], Callable[[str], str]]]:
    """Ways to read a file's names and the network's: as they are, without wrappers, without what begins all its own."""
    yield str, str
    yield _without_wrappers, _without_wrappers
    outer, names = "", [_without_wrappers(_dotted(name)) for name in _tensors(model)]
    while names and all("." in name for name in names) and len({name.partition(".")[0] for name in names}) == 1:
        outer += f"{names[0].partition('.')[0]}."
        names = [name.partition(".")[2] for name in names]
        yield _without_wrappers, partial(_without_outer, outer=outer)


def _try(
    model: nn.Module,
    own: Mapping[str, str],
    beginning: str,
    spelt: Mapping[str, str],
    state: Mapping[str, Tensor],
    ignored: tuple[str, ...],
) -> _Try:
    """Compare the tensors behind `beginning` with the network's.

    Args:
        model: the network.
        own: spelt name -> the network's name.
        beginning: of the file's spelt names.
        spelt: spelt name -> the file's name.
        state: the file's tensors.
        ignored: beginnings of names that the network leaves out.
    """
    wanted = _tensors(model)
    matched = {name: spelt[beginning + short] for short, name in own.items() if beginning + short in spelt}
    missing = [
        names[0]
        for names in tensor_names(model)
        if not any(name in matched for name in names) and not names[0].endswith(COUNTER)
    ]
    taken = set(matched.values())
    mappings = {name.rpartition("/")[0] for name in taken or state}
    beside = {
        short: name
        for short, name in spelt.items()
        if name not in taken and name.rpartition("/")[0] in mappings and not name.endswith(COUNTER)
    }
    inside = {short.removeprefix(beginning): name for short, name in beside.items() if short.startswith(beginning)}
    tensors = {name: state[place] for name, place in matched.items()}
    return _Try(
        Match(
            beginning.rstrip(".") or TOP,
            tensors,
            [_dotted(name) for short, name in beside.items() if not short.startswith(beginning) and state[name].dim()],
        ),
        missing,
        any(isinstance(wanted[name], nn.Parameter) for name in missing),
        [_dotted(name) for short, name in inside.items() if not short.startswith(ignored)],
        [
            f"'{name}' has shape {tuple(tensor.shape)} instead of {tuple(wanted[name].shape)}"
            for name, tensor in tensors.items()
            if tensor.shape != wanted[name].shape
        ],
        [
            f"'{name}' {problem}"
            for name, tensor in tensors.items()
            if (problem := kind_problem(tensor, wanted[name])) is not None
        ],
    )


def tensor_names(model: nn.Module) -> list[list[str]]:
    """The names of each tensor of a network: several where modules or parameters are shared."""
    names: dict[object, list[str]] = defaultdict(list)
    for name, tensor in _tensors(model).items():
        is_stored = tensor.numel() > 0 and tensor.device.type != "meta"
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        names[place if is_stored else id(tensor)].append(name)
    return list(names.values())


def same_values(one: Tensor, other: Tensor) -> bool:
    """True if two tensors have one type, one shape and the same values."""
    if one.dtype != other.dtype:
        return False
    if one.is_floating_point():  # some types of 8 bits cannot be compared themselves
        one, other = (value if value.element_size() > 1 else value.float() for value in (one, other))
    return torch.equal(one, other)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def _under(state: Mapping[str, Tensor], key: str, source: str) -> dict[str, Tensor]:
    """The tensors whose place is `key`, or lies in it; the last part of a place is enough where one place has it."""
    if key == TOP:
        return {name: tensor for name, tensor in state.items() if "/" not in name}
    wanted, places = _dotted(key).strip("."), _places(state)
    ending = [place for place in places if place.endswith(f".{wanted}")]
    for place in [wanted, *(ending if len(ending) == 1 else ())]:
        if found := {name: tensor for name, tensor in state.items() if _dotted(name).startswith(f"{place}.")}:
            return found
    raise InputError(f"{source} holds nothing under '{key}': it holds {_listed(places)}.{nearest(key, places)}")


def _distinct(tries: Sequence[_Try], among: Sequence[_Try] = ()) -> list[_Try]:
    """One of all that hold the same values, and none of those whose values one in `among` holds."""
    kept: list[_Try] = []
    for each in tries:
        if not any(_holds(other.match.tensors, each.match.tensors) for other in [*among, *kept]):
            kept.append(each)
    return kept


def _holds(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """True if all of `others` are among `tensors`."""
    return all(name in tensors and same_values(tensors[name], other) for name, other in others.items())


def _advice(state: Mapping[str, Tensor], key: str | None) -> str:
    if key is None and len({name.rpartition("/")[0] for name in state}) == 1:
        return "Check --model and --weights."
    return f"Check --model and --weights, or choose from the file with --weights-key: {_listed(_places(state))}."


def _places(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Place -> its number of tensors: mappings, and prefixes where a mapping has few."""
    mappings: dict[str, list[str]] = defaultdict(list)
    for name in state:
        mapping, _, rest = name.rpartition("/")
        mappings[_dotted(mapping)].append(rest)
    places = {}
    for mapping, names in mappings.items():
        places[mapping or TOP] = len(names)
        prefixes = Counter(name.partition(".")[0] for name in names if "." in name)
        if len(prefixes) <= _MOST_PREFIXES:
            places.update({f"{mapping}.{prefix}".strip("."): count for prefix, count in prefixes.items()})
    return places


def _listed(places: Mapping[str, int]) -> str:
    listed = [f"{name} ({count} tensor{'s' if count != 1 else ''})" for name, count in places.items()]
    more = len(listed) - _MOST_LISTED
    return ", ".join(listed[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _ends(name: str) -> Iterator[str]:
    """The name itself, and what stands behind each of its dots."""
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _dotted(name: str) -> str:
    return name.replace("/", ".")


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _without_outer(name: str, outer: str) -> str:
    return _without_wrappers(name).removeprefix(outer)
