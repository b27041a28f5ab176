"""genie: low-bit convolutional networks from pre-trained ones, without any real data."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from genie_cli.version import __version__

if TYPE_CHECKING:
    from genie_cli.artifacts.images import ImageSet as ImageSet
    from genie_cli.library.evaluate import evaluate as evaluate
    from genie_cli.library.quantize import quantize as quantize
    from genie_cli.library.quantized_model import QuantizedModel as QuantizedModel
    from genie_cli.library.registering import preset as preset
    from genie_cli.library.registering import rounding as rounding
    from genie_cli.library.registering import synthesis_term as synthesis_term
    from genie_cli.library.synthesize import synthesize as synthesize
    from genie_cli.quantization.learned.weight import LearnedWeight as LearnedWeight
    from genie_cli.quantization.learned.weight import WeightParts as WeightParts
    from genie_cli.student.load import load as load
    from genie_cli.synthesis.own_terms import ImageBatch as ImageBatch

__all__ = [
    "ImageBatch",
    "ImageSet",
    "LearnedWeight",
    "QuantizedModel",
    "WeightParts",
    "__version__",
    "evaluate",
    "load",
    "preset",
    "quantize",
    "rounding",
    "synthesis_term",
    "synthesize",
]

_MODULE_OF = {
    "ImageBatch": "synthesis.own_terms",
    "ImageSet": "artifacts.images",
    "LearnedWeight": "quantization.learned.weight",
    "QuantizedModel": "library.quantized_model",
    "WeightParts": "quantization.learned.weight",
    "evaluate": "library.evaluate",
    "load": "student.load",
    "preset": "library.registering",
    "quantize": "library.quantize",
    "rounding": "library.registering",
    "synthesis_term": "library.registering",
    "synthesize": "library.synthesize",
}


def __getattr__(name: str) -> Any:
    """A name of the library, imported on first use: the package itself must import fast, without torch."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
