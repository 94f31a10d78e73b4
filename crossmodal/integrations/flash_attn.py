"""flash-attn's two functions, for code that comes from there: its layout, its causal alignment, its names.

After ``from crossmodal.integrations.flash_attn import flash_attn_func, flash_attn_varlen_func`` in the place of
``from flash_attn import ...`` the calls stay as they are.
"""

from typing import Any

import torch
from torch import Tensor

from crossmodal._arguments import varlen_problem
from crossmodal._problem import VarlenProblem
from crossmodal._validate import check_tensor
from crossmodal.ops.attention import attention
from crossmodal.ops.varlen import attention_varlen
from crossmodal.reference.varlen import Sequences

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
            ``-slope * |i + seqlen_k - seqlen_q - j|``, in a bias that takes seqlen_q x seqlen_k memory for each head.
        deterministic: always so on the CPU.
        return_attn_probs: also return lse ``(batch, num_heads, seqlen_q)`` float32, and None, which stands where
            flash-attn returns probabilities for its own tests.

    Returns:
        ``(batch, seqlen_q, num_heads, head_dim_v)``; a query that sees no key gives 0.

    Raises:
        TypeError, ValueError: as :func:`crossmodal.attention`, with its names for the arguments.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_tensor(name, tensor)
        if tensor.dim() != 4:
            raise ValueError(f"{name} must be (batch, seqlen, num_heads, head_dim), got shape {tuple(tensor.shape)}")
    query, key, value = (t.transpose(1, 2) for t in (q, k, v))
    bias = None
    if alibi_slopes is not None:
        _check_slopes(alibi_slopes, query.shape[0], query.shape[1])
        shift = torch.full((1,), key.shape[2] - query.shape[2], device=query.device)
        bias = _alibi(alibi_slopes, query.shape[2], key.shape[2], shift)
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
        alibi_slopes: as for :func:`flash_attn_func`, by the lengths of each sequence; the sequences are then padded,
            and memory grows with batch x num_heads x max_seqlen_q x max_seqlen_k.
        block_table: not taken: None.
        return_attn_probs: also return lse ``(num_heads, total_q)`` float32, and None.

    Returns:
        ``(total_q, num_heads, head_dim_v)``.

    Raises:
        NotImplementedError: for block_table.
        TypeError, ValueError: as :func:`crossmodal.attention_varlen`, with its names for the arguments.
    """
    if block_table is not None:
        raise NotImplementedError(f"block_table must be None, got {type(block_table).__name__}")
    options: dict[str, Any] = {"causal_align": "lower_right", "window_size": window_size, "softcap": softcap}
    packed = (q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, causal, softmax_scale)
    grouped = k.shape[1:2] != q.shape[1:2]
    if alibi_slopes is None:
        result = attention_varlen(*packed, grouped, **options, return_lse=return_attn_probs)
        return result if isinstance(result, Tensor) else (*result, None)
    problem = varlen_problem(*packed, grouped, **options, sink=None, dropout_seed=None)
    _check_slopes(alibi_slopes, problem.batch, problem.num_heads)
    out, lse = _padded_with_alibi(problem, alibi_slopes)
    return (out, lse, None) if return_attn_probs else out


def _padded_with_alibi(problem: VarlenProblem, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Out and lse, packed; packed attention takes no bias."""
    queries = Sequences.of(problem.cu_seqlens_q, problem.max_seqlen_q, problem.query.shape[0])
    keys = Sequences.of(problem.cu_seqlens_k, problem.max_seqlen_k, problem.key.shape[0])
    query, key, value = queries.pad(problem.query), keys.pad(problem.key), keys.pad(problem.value)
    result = attention(
        query,
        key,
        value,
        _alibi(slopes, queries.width, keys.width, keys.lengths - queries.lengths),
        problem.dropout_p,
        problem.is_causal,
        problem.scale,
        key.shape[1] != query.shape[1],
        key_lengths=keys.lengths,
        query_lengths=queries.lengths,
        causal_align=problem.causal_align,
        window_size=problem.window_size,
        softcap=problem.softcap,
        return_lse=True,
    )
    assert not isinstance(result, Tensor)
    out, lse = result
    return queries.pack(out, 0.0), queries.pack(lse.unsqueeze(-1), float("-inf")).squeeze(-1).transpose(0, 1)


def _check_slopes(slopes: Tensor, batch: int, num_heads: int) -> None:
    check_tensor("alibi_slopes", slopes)
    if tuple(slopes.shape) not in ((num_heads,), (batch, num_heads)):
        raise ValueError(
            f"alibi_slopes must have shape (num_heads,) = ({num_heads},) or (batch, num_heads) = ({batch}, "
            f"{num_heads}), got {tuple(slopes.shape)}"
        )


def _alibi(slopes: Tensor, seqlen_q: int, seqlen_k: int, shift: Tensor) -> Tensor:
    """``(batch or 1, num_heads, seqlen_q, seqlen_k)`` (Press et al., 2022).

    ``shift``, ``(batch,)`` or ``(1,)``: keys less queries, which aligns the diagonal to the lower right.
    """
    query = torch.arange(seqlen_q, device=slopes.device)[:, None] + shift[:, None, None, None]
    distance = (query - torch.arange(seqlen_k, device=slopes.device)).abs()
    slopes = slopes if slopes.dim() == 2 else slopes[None]
    return -slopes[:, :, None, None] * distance
