"""Plain-torch twin of :func:`crossmodal.attention`."""

from torch import Tensor

from crossmodal._arguments import attention_problem
from crossmodal._nested import nested_attention
from crossmodal.reference.fuse import run_reference
from crossmodal.reference.varlen import attention_varlen


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    key_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    causal_align: str = "upper_left",
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    sink: Tensor | None = None,
    return_lse: bool = False,
    dropout_seed: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """See :func:`crossmodal.attention`; memory grows with seqlen_q x seqlen_k."""
    # The least that a call can pay for a rare case; whatever is no tensor is for `attention_problem` to name.
    if getattr(query, "is_nested", False) or getattr(key, "is_nested", False) or getattr(value, "is_nested", False):
        return nested_attention(
            attention_varlen,
            query,
            key,
            value,
            attn_mask,
            key_lengths,
            query_lengths,
            dropout_p=dropout_p,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            causal_align=causal_align,
            window_size=window_size,
            softcap=softcap,
            sink=sink,
            return_lse=return_lse,
            dropout_seed=dropout_seed,
        )
    problem = attention_problem(
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        is_causal,
        scale,
        enable_gqa,
        key_lengths,
        query_lengths,
        causal_align,
        window_size,
        softcap,
        sink,
        dropout_seed,
    )
    result = run_reference(problem, return_lse=return_lse, return_mass=False)
    if result.lse is not None:
        return result.out, result.lse
    return result.out
