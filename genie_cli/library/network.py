"""A network as users give it: a module, or the SPEC of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from genie_cli.config import ModelConfig, build
from genie_cli.errors import UsageError
from genie_cli.models.network_input import RecordedInput
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_teacher, module_teacher


@dataclass(frozen=True)
class GivenNetwork:
    """A network before it is captured.

    Attributes:
        config: its name, its weights and its input.
        module: the network itself; None: its name says which.
    """

    config: ModelConfig
    module: nn.Module | None

    @classmethod
    def of(cls, network: str | nn.Module, options: Mapping[str, Any]) -> GivenNetwork:
        """Take a module or a SPEC with options of `ModelConfig`.

        Raises:
            UsageError: something else, or a value that cannot be used.
        """
        if isinstance(network, nn.Module):
            return cls(build(ModelConfig, {**options, "name": type(network).__name__}, where="network"), network)
        if isinstance(network, str):
            return cls(build(ModelConfig, {**options, "name": network}, where="network"), None)
        raise UsageError(f"A network is a torch.nn.Module or a model SPEC such as 'resnet18', not {network!r:.80}.")

    def teacher(self, recorded: RecordedInput | None, reparameterize: bool | None = None) -> Teacher:
        """Capture it; the user's module is left as it is.

        Args:
            recorded: the input that an artifact records.
            reparameterize: merge its branches; None: as the options say.

        Raises:
            UsageError: unknown model or weights.
            InputError: it cannot be captured.
        """
        config = self.config
        if reparameterize is not None:
            config = config.model_copy(update={"reparameterize": reparameterize})
        if self.module is None:
            return load_teacher(config, recorded)
        return module_teacher(self.module, config, recorded)
