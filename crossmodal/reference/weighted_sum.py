"""Plain-torch twin of :func:`crossmodal.weighted_sum`."""

import torch
from torch import Tensor

from crossmodal._arguments import weighted_sum_problem
from crossmodal._problem import SoftmaxWeightedSumProblem, WeightedSumProblem
from crossmodal.reference._autocast import without_autocast


def weighted_sum(
    weights: Tensor, values: Tensor, *, lengths: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """See :func:`crossmodal.weighted_sum`."""
    return run_reference(weighted_sum_problem(weights, values, lengths, mask))


@without_autocast
def run_reference(problem: WeightedSumProblem) -> Tensor:
    """y_i = sum_j w_ij x_j over the keys j that take part."""
    weights, values = problem.weights, problem.values
    seen = taking_part(problem)
    if seen is not None:
        # Skipped, not multiplied by zero: what is hidden may hold NaN.
        weights = weights.masked_fill(~seen, 0.0)
        hidden_key = ~seen.any(dim=2).unsqueeze(-1)
        values = values.masked_fill(hidden_key, 0.0)
    out = weights @ values
    if seen is not None:
        # A query of which every key is skipped: what flows back to it is ignored.
        out = out.masked_fill(~seen.any(dim=3, keepdim=True), 0.0)
    return problem.unfold(out)


def taking_part(problem: WeightedSumProblem | SoftmaxWeightedSumProblem) -> Tensor | None:
    """Bool that broadcasts to (batch, num_heads, seqlen_q, seqlen_k), from lengths and mask; None: every key does."""
    seen = None
    if problem.lengths is not None:
        j = torch.arange(problem.values.shape[2], device=problem.values.device)
        seen = (j < problem.lengths[:, None])[:, None, None, :]
    if problem.mask is not None:
        seen = problem.mask if seen is None else seen & problem.mask
    return seen
