"""Attention with SDPA's signature."""

from typing import Any

from torch import Tensor

from crossmodal._arguments import attention_problem
from crossmodal._nested import nested_attention, pack
from crossmodal.dispatch import fusion_refusals, second_derivative_refusals
from crossmodal.explain import Plan, explain, plans
from crossmodal.ops._fusion import run_fusion
from crossmodal.ops._plain import plain_attention
from crossmodal.ops._plans import fusion_plan
from crossmodal.ops.varlen import attention_varlen

_NO_OPTIONS = (0.0, 0.0, (-1, -1), "upper_left")


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
    r"""Scaled dot-product attention; stands in the place of :func:`torch.nn.functional.scaled_dot_product_attention`.

    .. math:: s_{ij} = \mathrm{scale} \langle q_i, k_j \rangle + \mathrm{mask}_{ij}, \quad
              w_{ij} = e^{s_{ij}} / \textstyle\sum_{j'} e^{s_{ij'}}, \quad y_i = \textstyle\sum_j w_{ij} v_j

    (Vaswani et al., 2017, eq. 1). The weights are never written to memory. A query that may attend to nothing gives 0
    with gradient 0, and keys hidden by ``key_lengths`` or a key mask may hold NaN.

    Query, key and value may be jagged nested tensors, all three: ``(batch, num_heads, j, head_dim)``, which is
    ``(batch, j, num_heads, head_dim).transpose(1, 2)``, or ``(batch, j, head_dim)``. They go to
    :func:`attention_varlen`; output and lse are nested as well and keep query's offsets. Masks and lengths are refused.

    Args:
        query: ``(batch, num_heads, seqlen_q, head_dim)``, float32, bfloat16, float16 or float64. 2-D to 5-D; leading
            dimensions broadcast as in SDPA.
        key: ``(batch, num_heads, seqlen_k, head_dim)``, query's dtype.
        value: ``(batch, num_heads, seqlen_k, head_dim_v)``, query's dtype.
        attn_mask: bool (True = attend) or float (added to the scaled score; -inf hides), broadcast to
            ``(batch, num_heads, seqlen_q, seqlen_k)``. Float masks get a gradient. For key padding see
            :func:`crossmodal.masks.key_padding`.
        dropout_p: probability that a weight is dropped, in [0, 1].
        is_causal: query i sees keys j <= i; intersects with ``attn_mask`` and lengths.
        scale: factor of the scores, ``1 / sqrt(head_dim)`` if None.
        enable_gqa: key and value may have fewer heads, num_heads % num_heads_k == 0.
        key_lengths: ``(batch,)`` int32 or int64; keys at or beyond are hidden.
        query_lengths: ``(batch,)``; queries at or beyond give 0.
        causal_align: "upper_left", or "lower_right": shifted per sample by key length - query length.
        window_size: (left, right) keys that a query sees beside its own position, -1 = open.
        softcap: c > 0 turns a scaled score s into c * tanh(s / c).
        sink: ``(num_heads,)`` logit that joins the softmax with value 0.
        return_lse: also return the logarithm of the sum of exponentials.
        dropout_seed: one int64; the same seed gives the same mask on every device. None draws one from torch.

    Returns:
        ``(batch, num_heads, seqlen_q, head_dim_v)`` in query's dtype and memory order; with ``return_lse`` also lse
        ``(batch, num_heads, seqlen_q)``, float32 (float64 for float64), natural logarithm, -inf where nothing
        is seen, or the sink.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes, devices or values that do not fit, naming the argument.

    Example:
        >>> q, k = torch.randn(2, 8, 77, 64), torch.randn(2, 8, 197, 64)
        >>> out = crossmodal.attention(q, k, k, key_lengths=torch.tensor([197, 50]))
        >>> out.shape
        torch.Size([2, 8, 77, 64])
    """
    if (
        query_lengths is sink is dropout_seed is None
        and (dropout_p, softcap, window_size, causal_align) == _NO_OPTIONS
        and not return_lse
    ):
        out = plain_attention(query, key, value, attn_mask, key_lengths, scale, is_causal)
        if out is not None:
            return out
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
    result = run_fusion("attention", problem, return_lse=return_lse, return_mass=False)
    if result.lse is not None:
        return result.out, result.lse
    return result.out


@plans(attention)
def _plan(arguments: dict[str, Any]) -> Plan:
    tensors = [arguments[name] for name in ("query", "key", "value")]
    if any(getattr(t, "is_nested", False) for t in tensors):
        masks = [arguments.pop(name) for name in ("attn_mask", "key_lengths", "query_lengths")]
        others = {name: value for name, value in arguments.items() if name not in ("query", "key", "value")}
        return explain(attention_varlen, *pack(*tensors, *masks), **others)
    del arguments["return_lse"]
    problem = attention_problem(**arguments)
    again = second_derivative_refusals(problem.query, problem.dropout_p)
    return fusion_plan("attention", problem, fusion_refusals(problem), second_derivative_reasons=again)
