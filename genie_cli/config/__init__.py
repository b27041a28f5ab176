"""Typed, frozen configurations of the commands, and how they are put together.

Precedence: defaults < preset < budget < common section < command section < scheme < command-line flags.
Unknown keys are refused with the nearest known key. A field of a schema is everything about a key: its type and range,
its default (the paper's: method section 4 and the authors' constants), its docstring, which is the reference of
``params.yaml``, its command-line option, and its part in the result (`marks`).

Names are imported on first use, so that ``--help``, which reads the schemas' source, does without pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genie_cli.config.base import Frozen as Frozen
    from genie_cli.config.base import InputSpec as InputSpec
    from genie_cli.config.base import LongStage as LongStage
    from genie_cli.config.base import ModelConfig as ModelConfig
    from genie_cli.config.base import Stage as Stage
    from genie_cli.config.evaluate import EvaluateConfig as EvaluateConfig
    from genie_cli.config.export import ExportConfig as ExportConfig
    from genie_cli.config.params import COMMON_KEYS as COMMON_KEYS
    from genie_cli.config.params import SECTIONS as SECTIONS
    from genie_cli.config.params import Params as Params
    from genie_cli.config.params import build as build
    from genie_cli.config.params import check_keys as check_keys
    from genie_cli.config.params import parse_yaml as parse_yaml
    from genie_cli.config.params import read_params as read_params
    from genie_cli.config.params import stage_config as stage_config
    from genie_cli.config.quantize import MAX_ACTIVATION_BITS as MAX_ACTIVATION_BITS
    from genie_cli.config.quantize import MAX_BITS as MAX_BITS
    from genie_cli.config.quantize import MIN_BITS as MIN_BITS
    from genie_cli.config.quantize import QuantizeConfig as QuantizeConfig
    from genie_cli.config.quantize import WeightGrid as WeightGrid
    from genie_cli.config.synthesize import SynthesizeConfig as SynthesizeConfig

_NAMES = {
    "base": ("Frozen", "InputSpec", "LongStage", "ModelConfig", "Stage"),
    "evaluate": ("EvaluateConfig",),
    "export": ("ExportConfig",),
    "params": ("COMMON_KEYS", "SECTIONS", "Params", "build", "check_keys", "parse_yaml", "read_params", "stage_config"),
    "quantize": ("MAX_ACTIVATION_BITS", "MAX_BITS", "MIN_BITS", "QuantizeConfig", "WeightGrid"),
    "synthesize": ("SynthesizeConfig",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A name of one of the modules."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
