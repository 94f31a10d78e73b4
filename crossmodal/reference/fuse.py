"""Plain-torch twin of :func:`crossmodal.fuse`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossmodal._arguments import fuse_problem
from crossmodal._problem import FusionProblem
from crossmodal.reference._autocast import without_autocast
from crossmodal.reference._dropout import dropout_keep
from crossmodal.reference._joint_softmax import joint_softmax, source_mass
from crossmodal.types import FusionResult, Source


def fuse(
    query: Tensor,
    sources: Sequence[Source | None],
    *,
    dropout_p: float = 0.0,
    scale: float | None = None,
    query_lengths: Tensor | None = None,
    softcap: float = 0.0,
    sink: Tensor | None = None,
    return_lse: bool = False,
    return_mass: bool = False,
    dropout_seed: Tensor | None = None,
) -> FusionResult:
    """See :func:`crossmodal.fuse`; memory grows with seqlen_q x (sum of seqlen_k)."""
    problem = fuse_problem(query, sources, dropout_p, scale, query_lengths, softcap, sink, dropout_seed)
    return run_reference(problem, return_lse=return_lse, return_mass=return_mass)


@without_autocast
def run_reference(problem: FusionProblem, *, return_lse: bool, return_mass: bool) -> FusionResult:
    """Evaluates a checked problem; ``attention`` and ``fuse`` both end here."""
    if not problem.sources:
        return nothing_to_attend(problem, return_lse=return_lse, return_mass=return_mass)
    joint = joint_softmax(problem)
    weights = joint.weights
    if problem.dropout_p > 0.0:
        seed = problem.dropout_seed
        if seed is None:
            seed = draw_seed(problem.query.device)
        keep = dropout_keep(seed, problem.dropout_p, *weights.shape)
        kept_scale = 0.0 if problem.dropout_p == 1.0 else 1.0 / (1.0 - problem.dropout_p)
        weights = torch.where(keep, weights * kept_scale, 0.0)
    out = (weights.to(problem.query.dtype) @ joint.values).masked_fill(joint.dead, 0.0)
    return FusionResult(
        problem.unfold(out),
        problem.unfold(joint.lse) if return_lse else None,
        problem.unfold(source_mass(problem, joint)) if return_mass else None,
    )


def nothing_to_attend(problem: FusionProblem, *, return_lse: bool, return_mass: bool) -> FusionResult:
    """All sources absent: out 0, lse -inf (the sink where there is one), mass 0."""
    query = problem.query
    accumulate = torch.float64 if query.dtype == torch.float64 else torch.float32
    # Zeros that hang on the graph, whatever query holds: backward finds gradients of zero, not none at all.
    out = query.masked_fill(torch.ones((), dtype=torch.bool, device=query.device), 0.0)
    zero = out.sum(dim=-1).to(accumulate)
    lse = zero + float("-inf")
    if problem.sink is not None:
        sink = problem.sink.to(accumulate)[None, :, None]
        # A sink of -inf is none, also for what flows back.
        lse = (zero + sink).masked_fill(sink == float("-inf"), float("-inf"))
        if problem.query_lengths is not None:
            row = torch.arange(problem.seqlen_q, device=query.device)
            lse = lse.masked_fill((row >= problem.query_lengths[:, None])[:, None], float("-inf"))
    mass = zero.unsqueeze(-1).expand(*zero.shape, problem.num_slots).clone()
    return FusionResult(
        problem.unfold(out),
        problem.unfold(lse) if return_lse else None,
        problem.unfold(mass) if return_mass else None,
    )


def draw_seed(device: torch.device) -> Tensor:
    """A dropout seed from torch's generator, on the device, without a synchronisation."""
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)
