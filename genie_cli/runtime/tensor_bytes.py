"""Tensors as bytes: the same content gives the same file and the same hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the sorted names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Serialise tensors as a safetensors file: the same bytes for the same content.

    Tensors may live on any device, in any memory format, and may share memory; each is written out.
    """
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        # safetensors refuses tensors that share memory: only these are copied, so that large ones are not.
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    return safetensors.torch.save(plain, metadata)
