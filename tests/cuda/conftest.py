"""Fixtures of a real GPU."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class GpuOperators:
    """torch.ops.crossmodal on CPU tensors, computed by a GPU: what lets the CPU's tests run there unchanged."""

    def __init__(self, operators: Any) -> None:
        self._operators = operators

    def __getattr__(self, name: str) -> Any:
        operator = getattr(self._operators, name).default

        def there_and_back(*arguments: Any) -> Any:
            results = operator(*tree_map_only(Tensor, _to_gpu, arguments))
            return tree_map_only(Tensor, lambda t: t.cpu(), results)

        return SimpleNamespace(default=there_and_back)


def _to_gpu(tensor: Tensor) -> Tensor:
    """With the strides that it has: a copy of its storage, seen in the same way."""
    storage = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()).cuda()
    return storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


@pytest.fixture
def on_gpu(monkeypatch):
    """`crossmodal` on CPU tensors runs the kernels of the GPU."""
    monkeypatch.setattr(torch.ops, "crossmodal", GpuOperators(torch.ops.crossmodal))
