"""What attended to what."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossmodal import _library  # noqa: F401  registers torch.ops.crossmodal
from crossmodal._arguments import associate_problem
from crossmodal._problem import FusionProblem
from crossmodal.dispatch import fall_back, fusion_refusals, needs_gradient
from crossmodal.explain import Plan, plans
from crossmodal.ops._apply import apply
from crossmodal.ops._directions import in_each_direction
from crossmodal.ops._fakes import order_of
from crossmodal.ops._fusion import (
    Layout,
    Operands,
    accumulator,
    describe,
    differentiates_again,
    distinct,
    gradients_of_reference,
    only_needed,
    operands_of,
    problem_of,
    run_fusion,
    with_differentiable,
)
from crossmodal.ops._plans import fusion_plan
from crossmodal.reference._autocast import without_autocast
from crossmodal.reference._joint_softmax import joint_softmax
from crossmodal.reference.associate import run_reference
from crossmodal.types import Source

# The operator's `output` argument, and what csrc/core/attention_problem.h calls AssociateOutput.
_OUTPUTS = {None: 0, "heads": 1, "topk": 2, "keys": 3, "entropy": 4}


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
    reasons = fusion_refusals(problem)
    if reasons:
        fall_back("associate", reasons)
        return run_reference(problem, reduce, topk)

    request = Request(_OUTPUTS["topk" if topk is not None else reduce], topk or 0)
    layout, x = describe(problem, return_mass=False)
    x = x._replace(values=[])
    if needs_gradient(x.differentiable):
        weights, indices, _ = apply(AssociateFunction, layout, request, *distinct([*x.differentiable, *x.constant]))
    else:
        weights, indices, _ = call_forward(layout, request, x, for_backward=False)
    if topk is not None:
        return problem.unfold(weights), problem.unfold(indices)
    return problem.unfold_without_heads(weights) if reduce == "heads" else problem.unfold(weights)


@plans(associate)
def _plan(arguments: dict[str, Any]) -> Plan:
    problem = associate_problem(**arguments)
    reasons = fusion_refusals(problem) if problem.sources else []
    # Mass is what the kernel of `fuse` gives beside its output.
    return fusion_plan("associate", problem, reasons, reads_values=arguments["reduce"] == "mass")


class Request(NamedTuple):
    """What is asked for, in the operator's numbers."""

    output: int
    topk: int


def _arguments(layout: Layout, x: Operands) -> tuple[Any, ...]:
    """What both operators take, in their order."""
    return x.query, x.keys, x.key_lengths, x.terms, layout.term_sources, x.query_lengths, x.sink


def call_forward(layout: Layout, request: Request, x: Operands, *, for_backward: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Weights or their summary, indices (of the strongest), and the statistics that backward rebuilds weights from."""
    return torch.ops.crossmodal.associate_fwd.default(
        *_arguments(layout, x),
        layout.options.scale,
        layout.options.softcap,
        *request,
        for_backward,
    )


class AssociateFunction(torch.autograd.Function):
    """Compiled forward and backward; a second derivative goes through the formulas of the reference."""

    generate_vmap_rule = True

    @staticmethod
    def forward(layout: Layout, request: Request, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return call_forward(layout, request, _operands_of(layout, tensors), for_backward=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        layout, request, *tensors = inputs
        _, indices, statistics = output
        ctx.layout, ctx.request = layout, request
        ctx.save_for_backward(*tensors, indices, statistics)
        ctx.mark_non_differentiable(indices, statistics)

    @staticmethod
    def backward(ctx: Any, dweights: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        layout, request = ctx.layout, ctx.request
        *tensors, indices, statistics = ctx.saved_tensors
        x = _operands_of(layout, tensors)
        needs = ctx.needs_input_grad[2 : 2 + len(x.differentiable)]
        rest = (None,) * len(x.constant)
        if differentiates_again():
            problem = problem_of(layout, x._replace(values=x.keys))

            def weights(query: Tensor, *leaves: Tensor) -> tuple[Tensor]:
                keys = leaves[: len(x.keys)]  # in the place of values, which are not read
                return (_summary(with_differentiable(problem, (query, *keys, *leaves)), request, indices),)

            return (None, None, *gradients_of_reference(weights, x.differentiable, needs, [dweights]), *rest)

        def gradients(dweights: Tensor) -> list[Tensor]:
            return torch.ops.crossmodal.associate_bwd.default(
                dweights,
                *_arguments(layout, x),
                indices,
                statistics,
                layout.options.scale,
                layout.options.softcap,
                request.output,
                [int(needed) for needed in needs],
            )

        return (None, None, *only_needed(in_each_direction(gradients, dweights), needs), *rest)


def _operands_of(layout: Layout, tensors: Sequence[Tensor]) -> Operands:
    """As `operands_of`, without values."""
    count = len(layout.has_lengths)
    return operands_of(layout, [*tensors[: 1 + count], *tensors[1 : 1 + count], *tensors[1 + count :]])._replace(
        values=[]
    )


@without_autocast
def _summary(problem: FusionProblem, request: Request, indices: Tensor) -> Tensor:
    """What the operator returns, by the reference; of the strongest links those that it found."""
    reduce = next(name for name, output in _OUTPUTS.items() if output == request.output)
    if reduce != "topk":
        summary = run_reference(problem, reduce, None)
        assert isinstance(summary, Tensor)
        return summary
    weights = joint_softmax(problem).weights
    if weights.shape[-1] == 0:
        return weights.new_zeros(indices.shape)
    return weights.gather(-1, indices.clamp(min=0)).masked_fill(indices < 0, 0.0)


@torch.library.register_fake("crossmodal::associate_fwd")
def _associate_fwd_fake(query, keys, *rest):  # type: ignore[no-untyped-def]
    output, topk, for_backward = rest[-3:]
    batch, num_heads, seqlen_q, _ = query.shape
    total = sum(key.shape[2] for key in keys)
    shape = {
        _OUTPUTS[None]: (batch, num_heads, seqlen_q, total),
        _OUTPUTS["heads"]: (batch, seqlen_q, total),
        _OUTPUTS["topk"]: (batch, num_heads, seqlen_q, topk),
        _OUTPUTS["keys"]: (batch, num_heads, total),
        _OUTPUTS["entropy"]: (batch, num_heads, seqlen_q),
    }[output]
    accumulate = accumulator(query.dtype)
    return (
        query.new_empty(shape, dtype=accumulate),
        query.new_empty(shape if output == _OUTPUTS["topk"] else (0,), dtype=torch.int64),
        query.new_empty((2 if for_backward else 0, batch * num_heads * seqlen_q), dtype=accumulate),
    )


@torch.library.register_fake("crossmodal::associate_bwd")
def _associate_bwd_fake(dweights, query, keys, lengths, terms, owners, query_lengths, sink, *rest):  # type: ignore[no-untyped-def]
    gradients = [order_of(t, t.shape[2], t.shape[3]) for t in (query, *keys)]
    inputs = [query, *keys, *terms]
    gradients += [t.new_empty(t.shape) for t in terms]
    if sink is not None:
        inputs.append(sink)
        gradients.append(sink.new_empty(sink.shape))
    wanted = rest[-1]
    return [g if w else t.new_empty((0,)) for g, w, t in zip(gradients, wanted, inputs, strict=True)]
