"""Weights in the order in which oneDNN reads them, brought into it once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class _Packed(NamedTuple):
    weight: Tensor  # its memory, kept alive, so that no other can come to lie where it lies
    version: int
    packed: Tensor


_lock = threading.Lock()
_users = 0
_packed: dict[tuple[object, ...], _Packed] = {}


@contextmanager
def packed_weights() -> Iterator[None]:
    """Within it, inference packs each weight that oneDNN multiplies by once, and not anew in each call.

    Holds for all threads, until the last that entered it leaves; it costs a second copy of these weights. What writes
    to a weight in place is noticed, except through ``weight.data``: enter it when weights are final. Where gradients
    are wanted, in compiled code, and where a weight is no parameter but computed, as by ``weight_norm``, it is read
    where it stands.

    Example:
        >>> model = crossmodal.nn.MultiheadAttention(512, 8, batch_first=True).eval()
        >>> text = torch.randn(32, 77, 512)
        >>> with crossmodal.nn.packed_weights(), torch.no_grad():
        ...     out, _ = model(text, text, text, need_weights=False)
    """
    global _users
    with _lock:
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _packed.clear()


def are_packed() -> bool:
    """Whether someone is within :func:`packed_weights`."""
    return _users > 0


def as_packed(weight: Tensor, rows: int) -> Tensor:
    """For :func:`crossmodal.nn._products.onednn_linear`: the weight packed, or as it is where nobody asked for more."""
    if not are_packed() or weight.is_inference():  # without a version nobody knows whether it has changed
        return weight
    if not isinstance(weight, torch.nn.Parameter) and not isinstance(weight._base, torch.nn.Parameter):
        return weight  # another one in every call
    place = (weight.data_ptr(), weight.shape, weight.stride(), weight.dtype)
    found = _packed.get(place)
    if found is None or found.version != weight._version:
        packed = torch.ops.mkldnn._reorder_linear_weight.default(weight.detach(), rows)
        # Not the parameter itself, which gets other memory from `module.to(...)`.
        found = _Packed(weight.detach(), weight._version, packed)
        with _lock:
            if _users > 0:
                _packed[place] = found
    return found.packed
