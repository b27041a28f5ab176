"""A teacher as a synthesis step runs it: images in, statistics loss out, with its own normalisation and swings."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from genie_cli.config import SynthesizeConfig
from genie_cli.data.pixel_prior import PixelPrior
from genie_cli.errors import InputError
from genie_cli.models.graph.placement import move
from genie_cli.models.graph.unsupported import unsupported_operation
from genie_cli.models.logits import Logits
from genie_cli.models.teacher import Teacher
from genie_cli.runtime.context import RunContext
from genie_cli.synthesis.statistics_graph import statistics_graph
from genie_cli.synthesis.swing import draw_offsets, set_offsets, swing_strided_convolutions


class TeacherNetwork:
    """One teacher on the device, shared by all batches.

    Images come standardized, with mean 0 and std 1. Each teacher sees them where the pixel prior lies in its own
    normalised space, so that all see the same pixels.
    """

    def __init__(
        self,
        teacher: Teacher,
        config: SynthesizeConfig,
        context: RunContext,
        logits: Logits | None = None,
    ) -> None:
        """Prepare the graph: up to the last batch norm, or with the rest that gives `logits`."""
        self._made_of = (teacher, config)
        self._context, self._logits = context, logits
        self._graph = statistics_graph(teacher.graph, context.dtype, logits)
        self._shifts = swing_strided_convolutions(self._graph) if config.swing else []
        move(self._graph, context.device)
        self._place = PixelPrior.of_input(teacher.input).placement(context.device)

    def running_on(self, context: RunContext) -> TeacherNetwork:
        """The same in the arithmetic of `context`; itself where that is its own."""
        if context.dtype == self._context.dtype:
            return self
        return TeacherNetwork(*self._made_of, context, self._logits)

    def draw_swings(self, num_steps: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Offsets of all swing convolutions for a batch's steps: ``[num_steps, num_shifts, 2]``."""
        return draw_offsets(num_steps, len(self._shifts), generator).to(device)

    def __call__(self, images: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Statistics loss of standardized ``images [B, C, H, W]`` under the offsets ``[num_shifts, 2]`` of a step.

        Returns:
            loss (scalar); logits ``[B, K]`` and features ``[B, D]``, float32, the input of the last layer
            (None where they are not asked for).
        """
        set_offsets(self._shifts, offsets)
        batch = self._place(images).to(self._context.dtype).contiguous(memory_format=torch.channels_last)
        if self._logits is None:
            return torch.stack(self._graph(batch)).sum(), None, None
        losses, logits, features = self._graph(batch)
        return torch.stack(losses).sum(), logits.float(), features.flatten(1).float()

    def unsupported_operation(self) -> str | None:
        """The operation of the network that its arithmetic lacks, in words; None: none by itself."""
        spec, device, dtype = self._made_of[0].input, self._context.device, self._context.dtype
        set_offsets(self._shifts, draw_offsets(1, len(self._shifts), torch.Generator().manual_seed(0))[0].to(device))
        images = torch.zeros(2, *spec.shape, dtype=dtype, device=device)
        return unsupported_operation(self._graph, [images.contiguous(memory_format=torch.channels_last)], nullcontext())


def check_same_input(teacher: Teacher, other: Teacher) -> None:
    """Refuse teachers that cannot see the same images; normalisations may differ.

    Raises:
        InputError: another size or number of channels.
    """
    if teacher.input.shape == other.input.shape:
        return
    (own_channels, *own), (channels, *found) = teacher.input.shape, other.input.shape
    raise InputError(
        f"'{teacher.name}' takes {own_channels} channel(s) of {own[0]}x{own[1]} pixels (height x width) and "
        f"'{other.name}' {channels} of {found[0]}x{found[1]}: teachers of one image set take the same; set "
        "--input-size where the networks allow it."
    )
