"""Measured numbers as strict JSON: sorted, indented, the same bytes for the same numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genie_cli.errors import InputError


def encode_metrics(metrics: Mapping[str, Any]) -> bytes:
    """JSON of metrics, with a newline at the end.

    NaN and infinity become null: JSON does not have them, and a broken number must not lose a finished run.
    """
    return (json.dumps(_finite(metrics), sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def read_metrics(path: Path) -> dict[str, Any]:
    """Read the metrics that `encode_metrics` wrote.

    Raises:
        InputError: the file is missing or does not hold a JSON object.
    """
    metrics = read_json(path)
    if not isinstance(metrics, dict):
        raise InputError(f"{path} must hold a JSON object, it holds {type(metrics).__name__}.")
    return metrics


def read_json(path: Path) -> Any:
    """Content of a JSON file, whose texts can all be written again.

    Raises:
        InputError: the file is missing, is not JSON, or holds text that is no Unicode.
    """
    try:
        content = json.loads(path.read_bytes())
        json.dumps(content, ensure_ascii=False).encode()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeEncodeError as error:
        text = ascii(error.object[error.start : error.end])
        raise InputError(
            f"{path} holds text that is no Unicode, {text}: write it again with the command that made it."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: write it again with the command that made it.") from error
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value
