"""flash-attn's two functions, for code that comes from there: its layout, its causal alignment, its names.

After ``from crossmodal.integrations.flash_attn import flash_attn_func, flash_attn_varlen_func`` in the place of
``from flash_attn import ...`` the calls stay as they are.
"""

import torch
from torch import Tensor

from crossmodal.ops.attention import attention
from crossmodal.ops.varlen import attention_varlen

Result = Tensor | tuple[Tensor, Tensor, Tensor | None]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """``flash_attn.flash_attn_func`` (Dao, 2023).

    Args:
        q: ``(batch, seqlen_q, num_heads, head_dim)``, float32, bfloat16, float16 or float64.
        k: ``(batch, seqlen_k, num_heads_k, head_dim)``; num_heads_k divides num_heads.
        v: ``(batch, seqlen_k, num_heads_k, head_dim_v)``.
        dropout_p: probability that a weight is dropped; give 0 when evaluating.
        softmax_scale: ``1 / sqrt(head_dim)`` if None.
        causal: query i sees keys up to ``i + seqlen_k - seqlen_q``: aligned to the lower right.
        window_size: (left, right) keys seen beside the own position, aligned in the same way; -1 = open.
        softcap: c > 0 turns a scaled score s into c * tanh(s / c).
        alibi_slopes: ``(num_heads,)`` or ``(batch, num_heads)`` float32; adds
            ``-slope * |i + seqlen_k - seqlen_q - j|``.
        deterministic: always so on the CPU.
        return_attn_probs: also return lse ``(batch, num_heads, seqlen_q)`` float32, and None, which stands where
            flash-attn returns probabilities for its own tests.

    Returns:
        ``(batch, seqlen_q, num_heads, head_dim_v)``; a query that sees no key gives 0.

    Raises:
        TypeError, ValueError: as :func:`crossmodal.attention`, with its names for the arguments.
    """
    query, key, value = (t.transpose(1, 2) for t in (q, k, v))
    bias = None if alibi_slopes is None else _alibi(alibi_slopes, query.shape[2], key.shape[2])
    result = attention(
        query,
        key,
        value,
        bias,
        dropout_p,
        causal,
        softmax_scale,
        key.shape[1] != query.shape[1],
        causal_align="lower_right",
        window_size=window_size,
        softcap=softcap,
        return_lse=return_attn_probs,
    )
    if isinstance(result, Tensor):
        return result.transpose(1, 2)
    out, lse = result
    return out.transpose(1, 2), lse, None


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Result:
    """``flash_attn.flash_attn_varlen_func`` (Dao, 2023): packed sequences, each with its own lengths.

    Args:
        q: ``(total_q, num_heads, head_dim)``.
        k: ``(total_k, num_heads_k, head_dim)``.
        v: ``(total_k, num_heads_k, head_dim_v)``.
        cu_seqlens_q, cu_seqlens_k: ``(batch + 1,)`` int32, 0 and where each sequence ends.
        max_seqlen_q, max_seqlen_k: the longest sequence, or more.
        dropout_p, softmax_scale, causal, window_size, softcap, deterministic: as for :func:`flash_attn_func`.
        alibi_slopes, block_table: not taken: None.
        return_attn_probs: also return lse ``(num_heads, total_q)`` float32, and None.

    Returns:
        ``(total_q, num_heads, head_dim_v)``.

    Raises:
        NotImplementedError: for alibi_slopes or block_table.
        TypeError, ValueError: as :func:`crossmodal.attention_varlen`, with its names for the arguments.
    """
    for name, value in (("alibi_slopes", alibi_slopes), ("block_table", block_table)):
        if value is not None:
            raise NotImplementedError(f"{name} must be None for packed sequences, got {type(value).__name__}")
    result = attention_varlen(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        causal,
        softmax_scale,
        k.shape[1] != q.shape[1],
        causal_align="lower_right",
        window_size=window_size,
        softcap=softcap,
        return_lse=return_attn_probs,
    )
    return result if isinstance(result, Tensor) else (*result, None)


def _alibi(slopes: Tensor, seqlen_q: int, seqlen_k: int) -> Tensor:
    """``(batch or 1, num_heads, seqlen_q, seqlen_k)`` (Press et al., 2022), aligned to the lower right."""
    query = torch.arange(seqlen_q, device=slopes.device)[:, None] + seqlen_k - seqlen_q
    distance = (query - torch.arange(seqlen_k, device=slopes.device)).abs()
    slopes = slopes if slopes.dim() == 2 else slopes[None]
    return -slopes[:, :, None, None] * distance
