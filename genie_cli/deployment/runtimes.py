"""The runtimes that exported files are run in, behind one interface: ONNX Runtime, OpenVINO, torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genie_cli.deployment.metadata import KEY, ExportMetadata, decoded
from genie_cli.deployment.pt2_file import load_pt2
from genie_cli.errors import InputError
from genie_cli.runtime.extras import is_installed, required

FORMATS = {".onnx": "onnx", ".pt2": "pt2"}
"""Suffix -> format."""


class Runtime(ABC):
    """A file, loaded in a runtime.

    Attributes:
        name: of the runtime.
        version: of the runtime.
        metadata: what the file says of itself; None: genie did not write it.
    """

    name: str
    version: str
    metadata: ExportMetadata | None = None

    @abstractmethod
    def run(self, images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """The outputs, in their order, for images ``[B, C, H, W]`` of the form that the file takes."""


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU."""

    name = "ONNX Runtime"

    def __init__(self, content: bytes, where: str | None, num_threads: int, optimized: Path | None = None) -> None:
        """Load an ONNX file.

        Args:
            content: of the file.
            where: names it in messages; None: it was made just now, and is not written.
            num_threads: threads of an operator.
            optimized: file that the optimized graph is written to.

        Raises:
            UsageError: the runtime is not installed.
            InputError: it cannot load the file, or write the optimized graph.
        """
        ort = required("onnxruntime")
        self.version = str(ort.__version__)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
        options.log_severity_level = 3  # errors alone
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        try:
            self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            if optimized is not None:
                raise _unwritten(self, optimized, error) from error
            raise _refused(self, where, error) from error
        self.metadata = decoded(self._session.get_modelmeta().custom_metadata_map.get(KEY))
        self._input = self._session.get_inputs()[0].name

    def run(self, images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """See `Runtime.run`."""
        return list(self._session.run(None, {self._input: images}))


class OpenVino(Runtime):
    """OpenVINO on the CPU."""

    name = "OpenVINO"

    def __init__(self, content: bytes, where: str | None, num_threads: int) -> None:
        """Load an ONNX file; arguments and errors as for `OnnxRuntime`."""
        openvino = required("openvino")
        self.version = str(openvino.__version__).partition("-")[0]
        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": num_threads, "PERFORMANCE_HINT": "LATENCY"}
        try:
            self._compiled = core.compile_model(core.read_model(content), "CPU", settings)
        except Exception as error:
            raise _refused(self, where, error) from error

    def run(self, images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """See `Runtime.run`."""
        found = self._compiled(images)
        return [found[output] for output in self._compiled.outputs]


class Torch(Runtime):
    """torch itself, for a ``.pt2`` file; its number of threads is the process's."""

    name = "torch"

    def __init__(self, content: bytes, where: str | None, num_threads: int) -> None:
        """Load a ``.pt2`` file.

        Raises:
            InputError: it cannot be loaded.
        """
        self.version = str(torch.__version__)
        try:
            self._module, text = load_pt2(content)
        except Exception as error:
            raise _refused(self, where, error) from error
        self.metadata = decoded(text)

    @torch.no_grad()
    def run(self, images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """See `Runtime.run`."""
        return [output.numpy() for output in self._module(torch.from_numpy(images))]


_RUNTIMES: dict[str, dict[str, Callable[[bytes, str | None, int], Runtime]]] = {
    "onnx": {"onnxruntime": OnnxRuntime, "openvino": OpenVino},
    "pt2": {"torch": Torch},
}
"""Format -> package -> its runtime, the usual one first."""


def format_of(path: Path) -> str:
    """The format of a file, by its suffix.

    Raises:
        InputError: another suffix.
    """
    if path.suffix not in FORMATS:
        raise InputError(f"{path} is no exported file: its name must end in {' or '.join(FORMATS)}.")
    return FORMATS[path.suffix]


def open_runtime(content: bytes, format: str, where: str | None, num_threads: int = 1) -> Runtime:
    """A file in the usual runtime of its format; `where` names it in messages, None if it is not written yet.

    Raises:
        UsageError: the runtime is not installed.
        InputError: it cannot load the file.
    """
    return next(iter(_RUNTIMES[format].values()))(content, where, num_threads)


def installed_runtimes(format: str) -> Sequence[Callable[[bytes, str | None, int], Runtime]]:
    """All runtimes of a format that are installed; where none is, that which has to be."""
    found = [runtime for package, runtime in _RUNTIMES[format].items() if is_installed(package)]
    return found or list(_RUNTIMES[format].values())[:1]


def read_exported(path: Path) -> bytes:
    """The bytes of an exported file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def image_batch(shape: Sequence[int], form: str) -> np.ndarray[Any, Any]:
    """Images of noise in the form that a file takes, the same at every call."""
    generator = np.random.default_rng(0)
    if form == "pixels":
        return generator.integers(0, 256, shape, dtype=np.uint8)
    return generator.standard_normal(shape, dtype=np.float32)


def _refused(runtime: Runtime, where: str | None, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    if "opset" in reason.lower():
        fix = "export it again with a lower --opset, or install a newer one"
    elif where is None:
        fix = "it does not know an operation in this form. Try --format pt2 or another --opset; nothing was written"
    else:
        fix = "the file is damaged, or the runtime does not know an operation of it"
    file = "the file that was made" if where is None else where
    return InputError(f"{runtime.name} {runtime.version} cannot load {file} ({reason[:200]}): {fix}.")


def _unwritten(runtime: Runtime, path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(
        f"{runtime.name} {runtime.version} cannot write its optimized graph to the temporary folder {path.parent} "
        f"({reason}): make room there, or name another one in TMPDIR. Nothing else was written."
    )
