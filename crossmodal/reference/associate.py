"""Plain-torch twin of :func:`crossmodal.associate`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossmodal._arguments import associate_problem
from crossmodal._problem import FusionProblem
from crossmodal.reference._autocast import without_autocast
from crossmodal.reference._joint_softmax import joint_softmax, source_mass
from crossmodal.types import Source


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
    """See :func:`crossmodal.associate`; memory grows with seqlen_q x (sum of seqlen_k)."""
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
    return run_reference(problem, reduce, topk)


@without_autocast
def run_reference(problem: FusionProblem, reduce: str | None, topk: int | None) -> Tensor | tuple[Tensor, Tensor]:
    """Evaluates a checked problem."""
    query = problem.query
    if problem.sources:
        joint = joint_softmax(problem)
        weights = joint.weights
    else:
        accumulate = torch.float64 if query.dtype == torch.float64 else torch.float32
        weights = torch.zeros((*query.shape[:3], 0), dtype=accumulate, device=query.device)
    if topk is not None:
        return _topk(problem, weights, topk)
    if reduce is None:
        return problem.unfold(weights)
    if reduce == "heads":
        mean = weights.mean(dim=1) if weights.shape[1] else weights.sum(dim=1)
        return problem.unfold_without_heads(mean)
    if reduce == "keys":
        return problem.unfold(weights.sum(dim=2))
    if reduce == "entropy":
        # 0 log 0 = 0, and its gradient stays finite.
        positive = weights > 0
        return problem.unfold(-(weights * torch.log(weights.masked_fill(~positive, 1.0))).sum(dim=-1))
    if not problem.sources:
        return problem.unfold(weights.new_zeros((*query.shape[:3], problem.num_slots)))
    return problem.unfold(source_mass(problem, joint))


def _topk(problem: FusionProblem, weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k strongest links of each query, strongest first; weight 0 and index -1 where fewer keys are visible."""
    total = weights.shape[-1]
    # A stable sort: equal weights keep the order of the keys, on every implementation.
    order = torch.argsort(weights.detach(), dim=-1, descending=True, stable=True)[..., : min(k, total)]
    top = weights.gather(-1, order)
    index = order.masked_fill(top == 0, -1)
    if total < k:
        pad = (0, k - total)
        top = torch.nn.functional.pad(top, pad)
        index = torch.nn.functional.pad(index, pad, value=-1)
    return problem.unfold(top), problem.unfold(index)
