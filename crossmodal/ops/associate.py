"""What attended to what."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossmodal import _library  # noqa: F401  registers torch.ops.crossmodal
from crossmodal._arguments import associate_problem
from crossmodal._problem import FusionProblem
from crossmodal.dispatch import fall_back, fusion_refusals, fusion_tensors, needs_gradient
from crossmodal.ops._fusion import describe, run_fusion
from crossmodal.reference.associate import run_reference
from crossmodal.types import Source

# The operator's `output` argument, and what csrc/core/attention_problem.h calls AssociateOutput.
_WEIGHTS, _HEAD_MEAN, _TOP_K = 0, 1, 2


def associate(
    query: Tensor,
    key_or_sources: Tensor | Sequence[Source | None],
    *,
    reduce: str | None = None,
    topk: int | None = None,
    scale: float | None = None,
    key_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    attn_mask: Tensor | None = None,
    softcap: float = 0.0,
    sink: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The weights that :func:`attention` and :func:`fuse` use and do not keep, or a summary of them.

    Args:
        query: ``(batch, num_heads, seqlen_q, head_dim)``.
        key_or_sources: a key ``(batch, num_heads, seqlen_k, head_dim)``, or the list that :func:`fuse` takes; values
            are not read. Keys count along the padded concatenation of all sources that are present.
        reduce: None: all weights ``(batch, num_heads, seqlen_q, keys)``; "heads": their mean over heads
            ``(batch, seqlen_q, keys)``; "keys": what each key received in total ``(batch, num_heads, keys)``;
            "entropy": in nats ``(batch, num_heads, seqlen_q)``; "mass": per source
            ``(batch, num_heads, seqlen_q, num_sources)``.
        topk: instead of ``reduce``, the k strongest links of each query.
        scale, query_lengths, softcap, sink: as for :func:`attention`.
        key_lengths, attn_mask: as for :func:`attention`; with a key tensor only.

    Returns:
        The weights, float32 (float64 for float64). With ``topk`` a pair of
        ``(batch, num_heads, seqlen_q, k)``: weights, strongest first, and int64 indices, -1 where fewer
        keys have weight.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes, devices or values that do not fit, naming the argument.

    Example:
        >>> weights, index = crossmodal.associate(torch.eye(2), 9 * torch.eye(2), topk=1)
        >>> index.tolist()
        [[0], [1]]
    """
    problem = associate_problem(
        query,
        key_or_sources,
        reduce,
        topk,
        scale,
        key_lengths,
        query_lengths,
        attn_mask,
        softcap,
        sink,
    )
    if reduce == "mass":
        mass = run_fusion("associate", problem, return_lse=False, return_mass=True).mass
        assert mass is not None
        return mass
    if not problem.sources:
        return run_reference(problem, reduce, topk)
    reasons = _refusals(problem, reduce)
    if reasons:
        fall_back("associate", reasons)
        return run_reference(problem, reduce, topk)

    output = _TOP_K if topk is not None else _HEAD_MEAN if reduce == "heads" else _WEIGHTS
    layout, x = describe(problem, return_mass=False)
    weights, indices = torch.ops.crossmodal.associate.default(
        x.query, x.keys, x.lengths, x.terms, layout.term_sources, layout.scale, output, topk or 0
    )
    if topk is not None:
        return problem.unfold(weights), problem.unfold(indices)
    return problem.unfold_without_heads(weights) if reduce == "heads" else problem.unfold(weights)


def _refusals(problem: FusionProblem, reduce: str | None) -> list[str]:
    reasons = fusion_refusals(problem)
    if reduce in ("keys", "entropy"):
        reasons.append(f"reduce={reduce!r} has no kernel yet")
    if needs_gradient(fusion_tensors(problem)):
        reasons.append("associate has no compiled backward yet")
    return reasons


@torch.library.register_fake("crossmodal::associate")
def _associate_fake(query, keys, lengths, terms, term_sources, scale, output, topk):  # type: ignore[no-untyped-def]
    batch, num_heads, seqlen_q, _ = query.shape
    total = sum(key.shape[2] for key in keys)
    shapes = {
        _WEIGHTS: (batch, num_heads, seqlen_q, total),
        _HEAD_MEAN: (batch, seqlen_q, total),
        _TOP_K: (batch, num_heads, seqlen_q, topk),
    }
    weights = query.new_empty(shapes[output], dtype=torch.float64 if query.dtype == torch.float64 else torch.float32)
    return weights, query.new_empty(shapes[_TOP_K] if output == _TOP_K else (0,), dtype=torch.int64)
