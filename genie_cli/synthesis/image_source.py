"""The source of a batch's images: a generator on latents, or learned pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from genie_cli.config import InputSpec, SynthesizeConfig
from genie_cli.runtime.determinism import derive_seed, make_generator
from genie_cli.runtime.state import prefixed, without_prefix
from genie_cli.synthesis.conditioning import LabelConditioning, SuperposedConditioning, draw_superpositions
from genie_cli.synthesis.generator import Generator


class ImageSource(Protocol):
    """The images of one batch and their learned tensors."""

    @property
    def codes(self) -> nn.Parameter | None:
        """The tensor that learns image by image at the falling rate (latents or pixels); None: there is none."""
        ...

    def prepare(self) -> None:
        """Draw on the host the random numbers that the next forward pass needs."""
        ...

    def weights(self) -> Iterator[nn.Parameter]:
        """The generator's parameters, which learn at its rate."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The tensors that change from step to step."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state, in place."""
        ...

    def images(self, step_index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images of the step of the index ``[1]``: ``[B, C, H, W]``, standardized, float32; soft classes ``[B, K]``.

        The classes are None where the generator's input does not contain them.
        """
        ...


def make_source(
    spec: InputSpec, num_classes: int, index: int, labels: Tensor, config: SynthesizeConfig, device: torch.device
) -> ImageSource:
    """The source of batch `index`, one image per label ``[B]``, under the batch's own seeds."""
    if config.generator:
        return GeneratedImages(spec, num_classes, index, labels, config, device)
    return LearnedPixels(spec, index, len(labels), config, device)


class GeneratedImages:
    """A generator on latents that learn (M5 to M7 of Table 2) or are drawn anew in every step (GBA, M4).

    With conditioning, the latents are mapped first, together with each image's class.
    """

    def __init__(
        self,
        spec: InputSpec,
        num_classes: int,
        index: int,
        labels: Tensor,
        config: SynthesizeConfig,
        device: torch.device,
    ) -> None:
        """Draw the latents ``[B, latent_dim]`` from N(0, I)."""
        cpu = torch.device("cpu")
        self._generator = _new_generator(spec, index, config).to(device)
        self._draws = make_generator(cpu, config.seed, "latents", index)
        noise = torch.randn(len(labels), config.latent_dim, generator=self._draws).to(device)
        self.codes = nn.Parameter(noise) if config.learns_latents else None
        self._noise = noise if self.codes is None else self.codes
        self._labels = labels
        self._conditioning = _new_conditioning(num_classes, index, config)
        if isinstance(self._conditioning, SuperposedConditioning):
            steps = labels.cpu().expand(config.num_steps, -1)
            draws = make_generator(cpu, config.seed, "superpositions", index)
            drawn = draw_superpositions(steps, num_classes, config.num_mixed, config.mix_prob, draws)
            self._drawn = tuple(tensor.to(device) for tensor in drawn)
        if self._conditioning is not None:
            self._conditioning.to(device)

    def prepare(self) -> None:
        """Draw new latents where they do not learn."""
        if self.codes is not None:
            return
        drawn = torch.randn(self._noise.shape, generator=self._draws)
        if self._noise.is_cuda:  # from page-locked memory the copy goes up while the host goes on
            drawn = drawn.pin_memory()
        self._noise.copy_(drawn, non_blocking=True)  # in place: the step may be a CUDA graph that reads this tensor

    def weights(self) -> Iterator[nn.Parameter]:
        """The generator's parameters, and those of the conditioning."""
        yield from self._generator.parameters()
        if self._conditioning is not None:
            yield from self._conditioning.parameters()

    def state(self) -> dict[str, Tensor]:
        """The state of generator, conditioning, latents and random numbers."""
        conditioning = {} if self._conditioning is None else self._conditioning.state_dict()
        return {
            "noise": self._noise.detach(),
            "draws": self._draws.get_state(),
            **prefixed("generator", self._generator.state_dict()),
            **prefixed("conditioning", conditioning),
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self._noise.copy_(state["noise"])
        self._draws.set_state(state["draws"])
        self._generator.load_state_dict(without_prefix("generator", state))
        if self._conditioning is not None:
            self._conditioning.load_state_dict(without_prefix("conditioning", state))

    def images(self, step_index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The generator's images of the latents, and their soft classes."""
        latents, targets = self._noise, None
        if isinstance(self._conditioning, SuperposedConditioning):
            classes, shares = (all_steps.index_select(0, step_index).squeeze(0) for all_steps in self._drawn)
            latents, targets = self._conditioning(latents, classes, shares)
        elif self._conditioning is not None:
            latents = self._conditioning(latents, self._labels)
        images: Tensor = self._generator(latents)
        return images, targets


class LearnedPixels:
    """Pixels that start as noise and learn (ZeroQ, M1 to M3 of Table 2)."""

    def __init__(self, spec: InputSpec, index: int, size: int, config: SynthesizeConfig, device: torch.device) -> None:
        """Draw the pixels from N(0, 1): noise with the mean and std of the pixel prior, standardized."""
        draws = make_generator(torch.device("cpu"), config.seed, "pixels", index)
        noise = torch.randn(size, *spec.shape, generator=draws)
        self.codes = nn.Parameter(noise.to(device))

    def prepare(self) -> None:
        """Do nothing: learned pixels need no random numbers."""

    def weights(self) -> Iterator[nn.Parameter]:
        """No parameters: there is no generator."""
        return iter(())

    def state(self) -> dict[str, Tensor]:
        """The pixels."""
        return {"pixels": self.codes.detach()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self.codes.copy_(state["pixels"])

    def images(self, step_index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The pixels."""
        return self.codes, None


def _new_generator(spec: InputSpec, index: int, config: SynthesizeConfig) -> Generator:
    """A generator with PyTorch's default initialisation under the batch's own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "generator", index))
        generator = Generator(config.latent_dim, spec, config.tanh)
    return generator.train().to(memory_format=torch.channels_last)


def _new_conditioning(
    num_classes: int, index: int, config: SynthesizeConfig
) -> LabelConditioning | SuperposedConditioning | None:
    """Class embeddings under the batch's own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "conditioning", index))
        return new_conditioning(num_classes, config)


def new_conditioning(num_classes: int, config: SynthesizeConfig) -> LabelConditioning | SuperposedConditioning | None:
    """The module that conditions latents on classes, if any, drawn from PyTorch's own random numbers."""
    if config.conditioning == "none":
        return None
    kind = LabelConditioning if config.conditioning == "label" else SuperposedConditioning
    return kind(num_classes, config.latent_dim)
