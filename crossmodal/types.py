"""The two named tuples of the public API. Named tuples are pytrees, so compile, export and vmap see through them."""

from typing import NamedTuple

import torch
from torch import Tensor


class Source(NamedTuple):
    """One modality to attend over: the keys and values that it contributes to a joint softmax.

    Args:
        key: ``(batch, num_heads, seqlen_k, head_dim)``; 2-D to 5-D as for
            :func:`torch.nn.functional.scaled_dot_product_attention`.
        value: ``(batch, num_heads, seqlen_k, head_dim_v)``.
        lengths: ``(batch,)`` int32 or int64; keys at or beyond a sample's length are hidden.
            0 says that the modality is missing for that sample.
        mask: bool (True = attend) or float (added to the scaled score), broadcast to
            ``(batch, num_heads, seqlen_q, seqlen_k)``. ``-inf`` hides.
        bias: a second term of the same kind, for a learned bias beside a mask.
    """

    key: Tensor
    value: Tensor
    lengths: Tensor | None = None
    mask: Tensor | None = None
    bias: Tensor | None = None


class FusionResult(NamedTuple):
    """What :func:`crossmodal.fuse` returns; a field that was not asked for is None.

    Attributes:
        out: ``(batch, num_heads, seqlen_q, head_dim_v)``, query's dtype.
        lse: ``(batch, num_heads, seqlen_q)`` natural logarithm of the sum of the exponentials,
            float32 (float64 for float64).
        mass: ``(batch, num_heads, seqlen_q, num_sources)``, the attention that each source received.
    """

    out: Tensor
    lse: Tensor | None = None
    mass: Tensor | None = None


def _make_savable() -> None:
    """Lets ``torch.export.save`` write programs that take or return these tuples, under names that stay.

    torch sees through any named tuple, but saves only those that have a name. The function that gives one is private,
    in torch 2.10 to 2.13 at least; the public ``register_pytree_node`` is not for named tuples, which are nodes
    already. Where it is gone, everything but saving works.
    """
    register = getattr(torch.utils._pytree, "_register_namedtuple", None)
    known = getattr(torch.utils._pytree, "SUPPORTED_NODES", {})
    for cls in (Source, FusionResult):
        if register is not None and cls not in known:
            register(cls, serialized_type_name=f"crossmodal.{cls.__name__}")
    # A saved program holds its example inputs, which are read with weights_only=True.
    torch.serialization.add_safe_globals([Source, FusionResult])


_make_savable()
