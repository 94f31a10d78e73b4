"""Weights in the order in which oneDNN reads them, brought into it once."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle


class _Packed(NamedTuple):
    owner: weakref.ref[Tensor]  # the parameter, of which the weight may be a part
    begin: int  # of the owner's memory
    weight: Tensor  # its memory, kept alive, so that no other can come to lie where it lies
    version: int
    packed: Tensor

    def is_of_use(self) -> bool:
        """Whether its parameter is there still, in the same place."""
        owner = self.owner()
        return owner is not None and owner.data_ptr() == self.begin


_lock = threading.Lock()
_users = 0
_hook: RemovableHandle | None = None
_packed: dict[tuple[object, ...], _Packed] = {}


@contextmanager
def packed_weights() -> Iterator[None]:
    """Within it, inference packs each weight that oneDNN multiplies by once, and not anew in each call.

    Holds for all threads, until the last that entered it leaves; it costs a second copy of these weights. What writes
    to a weight in place is noticed, and every step of an optimizer, but not what writes through ``weight.data``: enter
    it when weights are final. Where gradients are wanted, in compiled code, and where a weight is no parameter but
    computed, as by ``weight_norm``, it is read where it stands.

    Example:
        >>> model = crossmodal.nn.MultiheadAttention(512, 8, batch_first=True).eval()
        >>> text = torch.randn(32, 77, 512)
        >>> with crossmodal.nn.packed_weights(), torch.no_grad():
        ...     out, _ = model(text, text, text, need_weights=False)
    """
    global _users, _hook
    with _lock:
        if _users == 0:
            _hook = register_optimizer_step_post_hook(_forget)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _packed.clear()
                assert _hook is not None
                _hook.remove()


def _forget(*_: object) -> None:
    """After a step of an optimizer: fused ones write to weights without leaving a new version."""
    with _lock:
        _packed.clear()


def are_packed() -> bool:
    """Whether someone is within :func:`packed_weights`."""
    return _users > 0


def as_packed(weight: Tensor, rows: int) -> Tensor:
    """For :func:`crossmodal.nn._products.onednn_linear`: the weight packed, or as it is where nobody asked for more."""
    if not are_packed() or weight.is_inference():  # without a version nobody knows whether it has changed
        return weight
    owner = weight if isinstance(weight, torch.nn.Parameter) else weight._base
    if not isinstance(owner, torch.nn.Parameter):
        return weight  # another one in every call
    place = (weight.data_ptr(), weight.shape, weight.stride(), weight.dtype)
    found = _packed.get(place)
    if found is None or found.version != weight._version:
        packed = torch.ops.mkldnn._reorder_linear_weight.default(weight.detach(), rows)
        # Not the parameter itself, which gets other memory from `module.to(...)`.
        found = _Packed(weakref.ref(owner), owner.data_ptr(), weight.detach(), weight._version, packed)
        with _lock:
            for other in [other for other, one in _packed.items() if not one.is_of_use()]:
                del _packed[other]
            if _users > 0:
                _packed[place] = found
    return found.packed
