"""Attention over several modalities under one softmax."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from crossmodal._arguments import fuse_problem
from crossmodal.dispatch import fusion_refusals, second_derivative_refusals
from crossmodal.explain import Plan, plans
from crossmodal.ops._fusion import run_fusion
from crossmodal.ops._plain import plain_fuse
from crossmodal.ops._plans import fusion_plan
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
    r"""Joint attention of query over the keys of all sources: :math:`y_i = \sum_s \sum_{j \in s} w_{ij} v_j`.

    Equals :func:`attention` on the concatenation of the sources, which is never made; hidden keys cost nothing.

    Args:
        query: ``(batch, num_heads, seqlen_q, head_dim)``.
        sources: one :class:`Source` per modality; None where a modality is absent from the whole batch. A modality
            absent from one sample has length 0 there.
        dropout_p, scale, query_lengths, softcap, sink, dropout_seed: as for :func:`attention`.
        return_lse: also return lse ``(batch, num_heads, seqlen_q)``.
        return_mass: also return the attention that each source received, ``(batch, num_heads, seqlen_q, num_sources)``,
            float32 (float64 for float64). It is differentiable and sums to 1 where anything was visible, less what
            a sink received.

    Returns:
        :class:`FusionResult`; fields that were not asked for are None. With no source present, ``out`` is 0 with last
        dimension ``head_dim``.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes, devices or values that do not fit, naming the argument.

    Example:
        >>> text = torch.randn(2, 8, 16, 64)
        >>> image, audio = torch.randn(2, 8, 197, 64), torch.randn(2, 8, 250, 64)
        >>> sources = [Source(image, image), Source(audio, audio, lengths=torch.tensor([250, 0]))]
        >>> crossmodal.fuse(text, sources, return_mass=True).mass[1, 0, 0].round()
        tensor([1., 0.])
    """
    if query_lengths is sink is dropout_seed is None and dropout_p == softcap == 0:
        result = plain_fuse(query, sources, scale, return_lse, return_mass)
        if result is not None:
            return result
    problem = fuse_problem(query, sources, dropout_p, scale, query_lengths, softcap, sink, dropout_seed)
    return run_fusion("fuse", problem, return_lse=return_lse, return_mass=return_mass)


@plans(fuse)
def _plan(arguments: dict[str, Any]) -> Plan:
    del arguments["return_lse"], arguments["return_mass"]
    problem = fuse_problem(**arguments)
    reasons = fusion_refusals(problem) if problem.sources else []
    again = second_derivative_refusals(problem.query, problem.dropout_p)
    return fusion_plan("fuse", problem, reasons, second_derivative_reasons=again)
