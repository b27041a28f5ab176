"""Where a batch's images come from: a generator on latents, or pixels that learn themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from genie_cli.config import InputSpec, SynthesizeConfig
from genie_cli.runtime.determinism import derive_seed, make_generator
from genie_cli.synthesis.generator import Generator


class ImageSource(Protocol):
    """Images of one batch, and what learns in them."""

    @property
    def codes(self) -> nn.Parameter | None:
        """What learns image by image at the falling rate (latents or pixels); None: nothing does."""
        ...

    def prepare(self) -> None:
        """Draw, on the host, what the next forward pass needs."""
        ...

    def weights(self) -> Iterator[nn.Parameter]:
        """The generator's parameters, which learn at its rate."""
        ...

    def images(self) -> Tensor:
        """Images ``[B, C, S, S]`` in normalised space, float32."""
        ...


def make_source(spec: InputSpec, index: int, size: int, config: SynthesizeConfig, device: torch.device) -> ImageSource:
    """The source of batch `index` with `size` images, under the batch's own seeds."""
    if config.generator:
        return GeneratedImages(spec, index, size, config, device)
    return LearnedPixels(spec, index, size, config, device)


class GeneratedImages:
    """A generator on latents that learn (GLO-like, M5 to M7 of Table 2) or are drawn anew in every step (GBA, M4)."""

    def __init__(self, spec: InputSpec, index: int, size: int, config: SynthesizeConfig, device: torch.device) -> None:
        """Draw the latents ``[B, latent_dim]`` from N(0, I)."""
        self._generator = _new_generator(spec, index, config).to(device)
        self._draws = make_generator(torch.device("cpu"), config.seed, "latents", index)
        noise = torch.randn(size, config.latent_dim, generator=self._draws).to(device)
        self.codes = nn.Parameter(noise) if config.learns_latents else None
        self._noise = noise if self.codes is None else self.codes

    def prepare(self) -> None:
        """Draw new latents where they do not learn."""
        if self.codes is None:  # in place: the step may be a CUDA graph that reads this very tensor
            self._noise.copy_(torch.randn(self._noise.shape, generator=self._draws))

    def weights(self) -> Iterator[nn.Parameter]:
        """The generator's parameters."""
        return self._generator.parameters()

    def images(self) -> Tensor:
        """What the generator makes of the latents."""
        images: Tensor = self._generator(self._noise)
        return images


class LearnedPixels:
    """Pixels that start as noise and learn (ZeroQ, M1 to M3 of Table 2)."""

    def __init__(self, spec: InputSpec, index: int, size: int, config: SynthesizeConfig, device: torch.device) -> None:
        """Draw the pixels from N(0, 1) in normalised space."""
        draws = make_generator(torch.device("cpu"), config.seed, "pixels", index)
        noise = torch.randn(size, spec.num_channels, spec.size, spec.size, generator=draws)
        self.codes = nn.Parameter(noise.to(device))

    def prepare(self) -> None:
        """Nothing is drawn."""

    def weights(self) -> Iterator[nn.Parameter]:
        """No generator."""
        return iter(())

    def images(self) -> Tensor:
        """The pixels."""
        return self.codes


def _new_generator(spec: InputSpec, index: int, config: SynthesizeConfig) -> Generator:
    """A generator with PyTorch's default initialisation under the batch's own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "generator", index))
        generator = Generator(config.latent_dim, spec)
    return generator.train().to(memory_format=torch.channels_last)
