"""The CPU's tests on other devices: the same bodies, on tensors of the CPU, by a GPU's kernels.

pytest -m cuda                          on a GPU, which also runs what only a GPU has
pytest --device emulated tests/ops ...  on the emulated one of tests/native
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

# Files about what the functions compute. What else there is, compiled graphs, checks of arguments, instruction sets,
# memory, threads, is the CPU's own or the same on every device.
SUITE = frozenset(
    {
        *(f"tests.ops.test_{op}" for op in ("associate", "attention", "fuse", "options", "plain", "varlen")),
        *(f"tests.ops.test_{op}" for op in ("softmax_weighted_sum", "weighted_sum")),
        *(f"tests.test_{name}" for name in ("autograd", "dropout", "extremes", "poison", "sdpa", "strides")),
    }
)
# What of it no GPU has to show: patterns of tests' node ids, and why.
NOT_ON_A_GPU = {
    "test_compiled_call_draws_the_same_mask": "compiled graphs hold the operators of the CPU",
    "test_mask_does_not_depend_on_the_number_of_threads": "threads are the CPU's",
    r"test_is_as_accurate_as_torch\[.*wide heads": "no kernel of a GPU is as wide: their way is plain torch",
    r"ops/test_softmax_weighted_sum.*very wide": "no kernel of a GPU is as wide: their way is plain torch",
    r"ops/test_attention.*test_every_head_dim": "goes beyond the widths of a GPU; random problems go up to them",
    r"ops/test_softmax_weighted_sum.*test_every_size": "goes beyond the widths of a GPU; random problems go up to them",
    "test_forty_modalities": "a GPU takes 8 sources",
    r"test_hidden_keys_may_as_well_not_be_there.*long": "only the CPU packs keys: equal but for rounding",
    "test_offsets_that_cannot_be_read_are_clamped": "compiled graphs hold the operators of the CPU",
    "test_vmap_agrees_with_a_loop": "vmap's tensors cannot be moved; tests/cuda has a test of its own",
    "test_leaves_transforms_to_the_general_way": "rules of vmap belong to the operators of the CPU",
    r"test_mask_does_not_depend_on_the_chunk_of_keys\[.*600": "values are wider than kernels of a GPU take",
    "test_lse_and_mass_are_those_before_dropout": "blocks of keys begin elsewhere with dropout: equal but for rounding",
    "gradgradcheck": "second derivatives have kernels on the CPU alone",
    "test_first_and_second_derivatives_equal": "second derivatives have kernels on the CPU alone",
    "test_gradients_of_many_cotangents_at_once": "rules of vmap belong to the operators of the CPU",
    "test_gradient_penalty_trains_through_the_operator": "second derivatives have kernels on the CPU alone",
}


@contextmanager
def operators(replacement: Any) -> Iterator[None]:
    """Within it, `crossmodal` runs these operators in place of torch.ops.crossmodal."""
    packet = torch.ops.crossmodal
    torch.ops.crossmodal = replacement
    try:
        yield
    finally:
        torch.ops.crossmodal = packet


class GpuOperators:
    """torch.ops.crossmodal on CPU tensors, computed by a GPU."""

    def __init__(self, there: Any) -> None:
        self._there = there

    def __getattr__(self, name: str) -> Any:
        operator = getattr(self._there, name).default

        def there_and_back(*arguments: Any) -> Any:
            results = operator(*tree_map_only(Tensor, _to_gpu, arguments))
            return tree_map_only(Tensor, lambda t: t.cpu(), results)

        return SimpleNamespace(default=there_and_back)


def _to_gpu(tensor: Tensor) -> Tensor:
    """With the strides that it has: a copy of its storage, seen in the same way."""
    storage = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()).cuda()
    return storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
