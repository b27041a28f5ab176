"""Tensors of the pretended GPU: where each one is said to be, and what a GPU would refuse or wait for."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.pretended_graphs import tensors_in, written_by

if TYPE_CHECKING:
    from tests.support.pretended_gpu import PretendedGpu

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
Place = Literal["gpu", "host", "unknown"]
"""`unknown`: made inside of an operation, which does not say where; it goes with whatever it meets."""
_ON_HOST = [
    torch.arange, torch.as_tensor, torch.empty, torch.empty_strided, torch.eye, torch.from_numpy, torch.frombuffer,
    torch.full, torch.linspace, torch.ones, torch.rand, torch.randint, torch.randn, torch.randperm,
    torch.scalar_tensor, torch.tensor, torch.zeros,
]  # fmt: skip
"""Functions whose results are on the host unless a device is named."""
_WAITING = {
    "_local_scalar_dense", "equal", "masked_select", "nonzero", "repeat_interleave", "unique_consecutive",
    "unique_dim", "_unique2",
}  # fmt: skip
"""Operations whose result the host must know: it waits for the GPU."""
_ACROSS = {"_local_scalar_dense", "_to_copy", "copy_", "index", "index_put_", "lift_fresh", "set_"}
"""Operations that may meet tensors of the host and of the GPU."""
_NOT_REPEATABLE = {
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward",
    "avg_pool3d_backward", "grid_sampler_2d_backward", "histc", "max_pool2d_with_indices_backward",
    "nll_loss2d_forward", "put_", "reflection_pad1d_backward", "reflection_pad2d_backward",
    "upsample_bicubic2d_backward", "upsample_bilinear2d_backward", "upsample_linear1d_backward",
}  # fmt: skip
"""Operations that PyTorch's CUDA build refuses where results have to repeat (``use_deterministic_algorithms``)."""


@dataclass(frozen=True)
class Layout:
    """A tensor as an operation saw it.

    Attributes:
        shape: its shape.
        dtype: of its elements.
        is_channels_last: the second of four dimensions is the fastest; None where there is only one place or channel.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    is_channels_last: bool | None

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        """The layout of a tensor."""
        told = tensor.dim() == 4 and tensor.shape[1] > 1 and tensor.shape[2] * tensor.shape[3] > 1
        return cls(tuple(tensor.shape), tensor.dtype, tensor.stride(1) == 1 if told else None)


@dataclass(frozen=True)
class Operation:
    """An operation on the GPU.

    Attributes:
        name: of the ATen operator.
        overload: of the operator, such as ``out``.
        is_view: it moves nothing.
        inputs: the tensors that it was given.
        outputs: the tensors that it has made or written.
    """

    name: str
    overload: str
    is_view: bool
    inputs: tuple[Layout, ...]
    outputs: tuple[Layout, ...]


def place_of(tensor: Tensor) -> Place:
    """Where a tensor is said to be."""
    with torch._C.DisableTorchFunction():
        if tensor.device.type == "meta":
            return "unknown"
        return getattr(tensor.untyped_storage(), "_pretended_place", "host")


class Claims(TorchFunctionMode):
    """What Python asks of tensors: devices as the pretended GPU has them."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self._gpu = gpu
        self._answers: dict[Any, Callable[..., Any]] = {
            Tensor.device.__get__: self._device,
            Tensor.is_cuda.__get__: lambda func, tensor: place_of(tensor) == "gpu",
            Tensor.is_cpu.__get__: lambda func, tensor: place_of(tensor) != "gpu" and func(tensor),
            Tensor.to: self._to,
            Tensor.cpu: lambda func, tensor: self._to(Tensor.to, tensor, CPU),
            Tensor.cuda: lambda func, tensor: self._to(Tensor.to, tensor, GPU),
            Tensor.pin_memory: self._pin,
            Tensor.tolist: self._to_list,
            Tensor.numpy: self._numpy,
            Tensor.__deepcopy__: self._copied_whole,
            torch._C._nn._parse_to: lambda func, *args, **kwargs: func(*args, **kwargs),
        }
        self._on_host = set(_ON_HOST)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer, or make the tensor where it is asked for."""
        kwargs = kwargs or {}
        answer = self._answers.get(func)
        if answer is not None:
            return answer(func, *args, **kwargs)
        device = kwargs.get("device")
        if device is None and func in self._on_host:
            device = CPU
        if device is None or torch.device(device).type == "meta":
            return func(*args, **kwargs)
        return self._made(func, args, kwargs, torch.device(device))

    def _made(self, func: Any, args: Any, kwargs: Any, device: torch.device) -> Any:
        place: Place = "gpu" if device.type == "cuda" else "host"
        if place == "gpu" and func in (torch.tensor, torch.as_tensor):
            self._gpu.host_waits("copies to the GPU")
        kwargs = {**kwargs, "device": CPU}
        if func in (torch.from_numpy, torch.frombuffer):
            del kwargs["device"]
        is_pinned = kwargs.pop("pin_memory", False)
        with self._gpu.making(place):
            result = func(*args, **kwargs)
        for tensor in tensors_in(result):
            self._gpu.put(tensor, place)
            if is_pinned:
                tensor.untyped_storage()._pretended_pinned = True
        return result

    def _device(self, func: Any, tensor: Tensor) -> torch.device:
        return GPU if place_of(tensor) == "gpu" else func(tensor)

    def _to(self, func: Any, tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        like = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
        if like is not None:
            place, dtype, is_asynchronous, layout = place_of(like), like.dtype, False, None
        else:
            device, dtype, is_asynchronous, layout = torch._C._nn._parse_to(*args, **kwargs)
            place = place_of(tensor) if device is None else "gpu" if device.type == "cuda" else "host"
        own = {"dtype": dtype or tensor.dtype, "memory_format": layout or torch.preserve_format}
        if place == place_of(tensor):
            return tensor.to(copy=copy, **own)
        self._gpu.cross(tensor, place, is_asynchronous)
        with self._gpu.making(place):
            return tensor.to(copy=True, **own)

    def _pin(self, func: Any, tensor: Tensor) -> Tensor:
        pinned = tensor.clone()
        pinned.untyped_storage()._pretended_pinned = True
        return pinned

    def _to_list(self, func: Any, tensor: Tensor) -> Any:
        if place_of(tensor) == "gpu":
            self._gpu.host_waits("reads values")
        return func(tensor)

    def _numpy(self, func: Any, tensor: Tensor, **options: Any) -> Any:
        if place_of(tensor) == "gpu":
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return func(tensor, **options)

    def _copied_whole(self, func: Any, tensor: Tensor, memo: Any) -> Tensor:
        copied = func(tensor, memo)
        self._gpu.put(copied, place_of(tensor))
        return copied


class Operations(TorchDispatchMode):
    """What is computed: on the CPU, behind the checks of a GPU, and into a recording where there is one."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check, compute, note."""
        with torch._C.DisableTorchFunction():
            return self._run(func, args, kwargs or {})

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        gpu, name = self._gpu, func._schema.name.removeprefix("aten::")
        tensors = tensors_in(*args, *kwargs.values())
        written = written_by(func, args, kwargs)
        places = {place_of(tensor) for tensor in tensors}
        is_on_gpu = "gpu" in places
        if is_on_gpu:
            self._check(name, args, kwargs, tensors, written)
        is_of_host = gpu.making_at == "host" if not tensors else places == {"host"}
        tape = None if is_of_host else gpu.capturing  # the host's own work is done once, while it records
        if tape is not None:
            tape.before(written)
        compute = _KERNELS.get(func, func)
        result = compute(*args, **kwargs)
        known = {tensor.untyped_storage()._cdata for tensor in tensors}
        new = [
            (i, tensor)
            for i, tensor in enumerate(result if isinstance(result, list | tuple) else [result])
            if isinstance(tensor, Tensor)
            and tensor.device.type != "meta"
            and tensor.untyped_storage()._cdata not in known
        ]
        place = gpu.making_at or ("gpu" if is_on_gpu else "host" if "host" in places else "unknown")
        for _, tensor in new:
            gpu.put(tensor, place)
        if tape is None and not is_on_gpu and place != "gpu":
            return result
        written += [tensor for _, tensor in new]
        is_view = func.is_view or (not written and name not in _WAITING)
        if not is_view:
            overwritten = {id(tensor) for tensor in written}
            read = accesses_of(tensor for tensor in tensors if id(tensor) not in overwritten)
            gpu.operate(read, accesses_of(written), name)
        if tape is not None or gpu.listeners:
            layouts = tuple(map(Layout.of, tensors)), tuple(map(Layout.of, written))
            operation = Operation(name, func._overloadname, is_view, *layouts)
            if tape is not None:
                tape.after(operation, compute, args, kwargs, new)
            for listen in gpu.listeners:
                listen(operation)
        return result

    def _check(self, name: str, args: Any, kwargs: Any, tensors: list[Tensor], written: list[Tensor]) -> None:
        """What a GPU refuses, and what makes the host wait."""
        gpu = self._gpu
        if name in _NOT_REPEATABLE and torch.are_deterministic_algorithms_enabled():
            raise RuntimeError(
                f"{name}_cuda does not have a deterministic implementation, but you set "
                "'torch.use_deterministic_algorithms(True)'."
            )
        generator = kwargs.get("generator")
        if generator is not None:
            if generator._cdata not in gpu.generators:
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
            if gpu.capturing is not None:
                gpu.capturing.check_generator(generator)
        if name in _WAITING:
            gpu.host_waits("reads a value")
        elif name == "copy_" and place_of(args[0]) != place_of(args[1]):
            gpu.cross(args[1], place_of(args[0]), bool(args[2]) if len(args) > 2 else kwargs.get("non_blocking", False))
        elif name in ("index", "index_put_"):
            chosen = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in chosen):
                gpu.host_waits("counts what a mask chooses")
            if any(place_of(index) == "host" for index in chosen):
                gpu.host_waits("copies indices to the GPU")
        elif name not in _ACROSS:
            self._check_places(name, tensors, written)

    def _check_places(self, name: str, tensors: list[Tensor], written: list[Tensor]) -> None:
        of_host = [tensor for tensor in tensors if place_of(tensor) == "host" and tensor.device.type != "meta"]
        if not of_host:
            return
        if any(tensor.dim() > 0 for tensor in of_host) or any(place_of(tensor) == "host" for tensor in written):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in of_host)
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({name} at {place_in_package()}: {shapes} on cpu)"
            )
        if self._gpu.capturing is not None:  # a kernel gets a single value as a plain number
            raise RuntimeError(f"{name} at {place_in_package()}: a recording keeps a value of the host for good")


def place_in_package() -> str:
    """The function of the package at work, such as ``Batch.step``."""
    frame = sys._getframe(1)
    while frame is not None:
        if "/genie_cli/" in frame.f_code.co_filename:
            return frame.f_code.co_qualname
        frame = frame.f_back
    return "outside"


def _statistics(x: Tensor, mean: Tensor | None, var: Tensor | None, momentum: float) -> tuple[Tensor, Tensor]:
    """In float32 like the CUDA kernel; that of a CPU needs running statistics for it."""
    running = [torch.zeros(x.shape[1]) if each is None else each for each in (mean, var)]
    return torch.ops.aten.batch_norm_update_stats(x, *running, momentum)


_KERNELS: dict[Any, Callable[..., Any]] = {torch.ops.aten.batch_norm_update_stats.default: _statistics}
"""Operations that need other arguments on a CPU to do what they do on a GPU."""


def finalize(storage: Any, call: Callable[..., None], *args: Any) -> None:
    """Call when the memory is gone."""
    weakref.finalize(storage, call, *args).atexit = False


def accesses_of(tensors: Iterable[Tensor]) -> list[Any]:
    """The notes on the accesses to the tensors' memory, each memory once."""
    found = {}
    for tensor in tensors:
        if tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            found[storage._cdata] = getattr(storage, "_pretended_accesses", None)
    return [accesses for accesses in found.values() if accesses is not None]
