"""Attention over packed sequences of different lengths."""

from torch import Tensor

from crossmodal._arguments import varlen_problem
from crossmodal.dispatch import fall_back
from crossmodal.reference.varlen import run_reference


def attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    causal_align: str = "upper_left",
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    sink: Tensor | None = None,
    return_lse: bool = False,
    dropout_seed: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Attention within each of several sequences that lie one after the other, without padding.

    Sequence b has the rows ``cu_seqlens_q[b]`` to ``cu_seqlens_q[b + 1]`` of query and the rows ``cu_seqlens_k[b]`` to
    ``cu_seqlens_k[b + 1]`` of key and value, the convention of FlashAttention (Dao, 2023, ``flash_attn_varlen_func``):

    .. math:: s_{ij} = \mathrm{scale} \langle q_i, k_j \rangle, \quad
              w_{ij} = e^{s_{ij}} / \textstyle\sum_{j'} e^{s_{ij'}}, \quad y_i = \textstyle\sum_j w_{ij} v_j

    (Vaswani et al., 2017, eq. 1) over the keys j of query i's own sequence. Queries that belong to no sequence give 0
    with gradient 0; such rows of query, key and value may hold NaN.

    Args:
        query: ``(total_q, num_heads, head_dim)``, float32, bfloat16, float16 or float64.
        key: ``(total_k, num_heads, head_dim)``, query's dtype.
        value: ``(total_k, num_heads, head_dim_v)``, query's dtype.
        cu_seqlens_q: ``(batch + 1,)`` int32 on query's device: 0, then where each sequence ends.
        cu_seqlens_k: the same for key and value.
        max_seqlen_q: length of the longest sequence of query, or more.
        max_seqlen_k: length of the longest sequence of key, or more.
        enable_gqa: key and value may have fewer heads, num_heads % num_heads_k == 0.
        dropout_p, is_causal, scale, causal_align, window_size, softcap, sink, dropout_seed: as for :func:`attention`;
            positions count from the start of each sequence.
        return_lse: also return the logarithm of the sum of exponentials.

    Returns:
        ``(total_q, num_heads, head_dim_v)`` in query's dtype; with ``return_lse`` also lse ``(num_heads, total_q)``,
        float32 (float64 for float64), natural logarithm, -inf where nothing is seen.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes, devices or values that do not fit, naming the argument.

    Example:
        >>> q, k = torch.randn(5, 8, 64), torch.randn(300, 8, 64)
        >>> ends_q, ends_k = torch.tensor([0, 2, 5], dtype=torch.int32), torch.tensor([0, 197, 300], dtype=torch.int32)
        >>> crossmodal.attention_varlen(q, k, k, ends_q, ends_k, 3, 197).shape
        torch.Size([5, 8, 64])
    """
    problem = varlen_problem(
        query,
        key,
        value,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        is_causal,
        scale,
        enable_gqa,
        causal_align,
        window_size,
        softcap,
        sink,
        dropout_seed,
    )
    fall_back("attention_varlen", ["packed sequences have no kernel yet"])
    out, lse = run_reference(problem)
    return (out, lse) if return_lse else out
