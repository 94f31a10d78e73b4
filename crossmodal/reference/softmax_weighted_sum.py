"""Plain-torch twin of :func:`crossmodal.softmax_weighted_sum`."""

import torch
from torch import Tensor

from crossmodal._arguments import softmax_weighted_sum_problem
from crossmodal._problem import SoftmaxWeightedSumProblem
from crossmodal.reference._autocast import without_autocast
from crossmodal.reference._joint_softmax import softmax
from crossmodal.reference.weighted_sum import taking_part


def softmax_weighted_sum(
    scores: Tensor,
    values: Tensor,
    *,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """See :func:`crossmodal.softmax_weighted_sum`; the weights are written out."""
    return run_reference(softmax_weighted_sum_problem(scores, values, lengths, mask, scale))


@without_autocast
def run_reference(problem: SoftmaxWeightedSumProblem) -> Tensor:
    """y_i = sum_j w_ij x_j, w_i = softmax(scale * s_i) over the keys j that take part."""
    scores, values = problem.scores, problem.values
    # Before the scale, which may turn the sign: -inf hides under any scale.
    seen = scores != float("-inf")
    within = taking_part(problem)
    if within is not None:
        seen = seen & within
    accumulate = torch.float64 if scores.dtype == torch.float64 else torch.float32
    score = (scores.to(accumulate) * problem.scale).masked_fill(~seen, float("-inf"))
    weights, _ = softmax(score, None)
    # What no query sees may hold NaN: it is replaced before it meets arithmetic.
    hidden_key = ~seen.any(dim=2).unsqueeze(-1)
    out = weights.to(values.dtype) @ values.masked_fill(hidden_key, 0.0)
    # A query that sees nothing: what flows back to it is ignored.
    return problem.unfold(out.masked_fill(~seen.any(dim=3, keepdim=True), 0.0))
