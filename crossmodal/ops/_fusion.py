"""Canonical problem -> compiled operator, with its gradient. ``attention``, ``fuse`` and mass all end here."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossmodal import _library  # noqa: F401  registers torch.ops.crossmodal
from crossmodal._problem import FusionProblem, KeySource
from crossmodal.dispatch import fall_back, fusion_refusals, needs_gradient
from crossmodal.ops._fakes import order_of
from crossmodal.reference.fuse import nothing_to_attend, run_reference
from crossmodal.types import FusionResult


class Layout(NamedTuple):
    """Which of the tensors in an operator call is what; everything that is not a tensor."""

    has_lengths: tuple[bool, ...]
    term_sources: tuple[int, ...]
    is_causal: bool
    scale: float
    return_mass: bool


class Operands(NamedTuple):
    """The tensors of an operator call, as its schema groups them."""

    query: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    terms: list[Tensor]
    lengths: list[Tensor | None]

    @property
    def differentiable(self) -> list[Tensor]:
        return [self.query, *self.keys, *self.values, *self.terms]


def run_fusion(op: str, problem: FusionProblem, *, return_lse: bool, return_mass: bool) -> FusionResult:
    """Runs the kernel that fits, or the reference where none does (see `crossmodal.dispatch`)."""
    if not problem.sources:
        return nothing_to_attend(problem, return_lse=return_lse, return_mass=return_mass)
    reasons = fusion_refusals(problem)
    if reasons:
        fall_back(op, reasons)
        return run_reference(problem, return_lse=return_lse, return_mass=return_mass)

    layout, operands = describe(problem, return_mass)
    if needs_gradient(operands.differentiable):
        lengths = [t for t in operands.lengths if t is not None]
        out, lse, mass, _ = FusionFunction.apply(layout, *distinct([*operands.differentiable, *lengths]))
    else:
        out, lse, mass, _ = call_forward(layout, operands, for_backward=False)
    return FusionResult(
        problem.unfold(out),
        problem.unfold(lse) if return_lse else None,
        problem.unfold(_absent_columns(problem, mass)) if return_mass else None,
    )


def describe(problem: FusionProblem, return_mass: bool) -> tuple[Layout, Operands]:
    sources = problem.sources
    terms = [(i, _kernel_term(term)) for i, source in enumerate(sources) for term in source.terms]
    layout = Layout(
        has_lengths=tuple(source.lengths is not None for source in sources),
        term_sources=tuple(i for i, _ in terms),
        is_causal=problem.is_causal,
        scale=problem.scale,
        return_mass=return_mass,
    )
    operands = Operands(
        problem.query,
        [source.key for source in sources],
        [source.value for source in sources],
        [term for _, term in terms],
        [source.lengths for source in sources],
    )
    return layout, operands


def call_forward(layout: Layout, x: Operands, *, for_backward: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out, lse, mass, and the row statistics that the backward operator rebuilds the weights from."""
    return torch.ops.crossmodal.attention_fwd.default(
        x.query,
        x.keys,
        x.values,
        x.lengths,
        x.terms,
        layout.term_sources,
        layout.is_causal,
        layout.scale,
        layout.return_mass,
        for_backward,
    )


class FusionFunction(torch.autograd.Function):
    """Compiled forward and backward; a second derivative goes through the formulas of the reference."""

    @staticmethod
    def forward(layout: Layout, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return call_forward(layout, _operands(layout, tensors), for_backward=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        layout, *tensors = inputs
        out, _, mass, statistics = output
        ctx.layout = layout
        ctx.save_for_backward(*tensors, out, mass, statistics)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        layout = ctx.layout
        *tensors, out, mass, statistics = ctx.saved_tensors
        dout, dlse, dmass, _ = grads
        needs = ctx.needs_input_grad[1:]
        x = _operands(layout, tensors)
        count = len(x.differentiable)
        rest = (None,) * (len(tensors) - count)
        if dout is None and dlse is None and dmass is None:
            return (None, *(None,) * len(tensors))
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            return (None, *_differentiable_backward(layout, x, grads[:3], needs[:count]), *rest)
        gradients = torch.ops.crossmodal.attention_bwd.default(
            torch.zeros_like(out) if dout is None else dout,
            dlse,
            dmass if layout.return_mass else None,
            x.query,
            x.keys,
            x.values,
            x.lengths,
            x.terms,
            layout.term_sources,
            out,
            statistics,
            mass,
            layout.is_causal,
            layout.scale,
            [int(needed) for needed in needs[:count]],
        )
        return (
            None,
            *(g if needed else None for g, needed in zip(gradients, needs, strict=False)),
            *rest,
        )


def _differentiable_backward(
    layout: Layout, x: Operands, grads: tuple[Tensor | None, ...], needs: tuple[bool, ...]
) -> list[Tensor | None]:
    """The same gradients with a graph of their own, by differentiating the reference."""
    sources = tuple(
        KeySource(
            x.keys[s],
            x.values[s],
            x.lengths[s],
            tuple(t for t, owner in zip(x.terms, layout.term_sources, strict=True) if owner == s),
            s,
        )
        for s in range(len(x.keys))
    )
    problem = FusionProblem(
        query=x.query,
        sources=sources,
        num_slots=len(sources),
        lead_shape=tuple(x.query.shape[:2]),
        scale=layout.scale,
        is_causal=layout.is_causal,
    )
    result = run_reference(problem, return_lse=True, return_mass=layout.return_mass)
    outputs = [(o, g) for o, g in zip(result, grads, strict=True) if o is not None and g is not None]
    wanted = [t for t, needed in zip(x.differentiable, needs, strict=True) if needed]
    found = iter(
        torch.autograd.grad(
            [o for o, _ in outputs],
            wanted,
            [g for _, g in outputs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(found) if needed else None for needed in needs]


def _operands(layout: Layout, tensors: Any) -> Operands:
    """The inverse of `Operands.differentiable` followed by the lengths that are there."""
    sources, terms = len(layout.has_lengths), len(layout.term_sources)
    query, rest = tensors[0], list(tensors[1:])
    keys, values = rest[:sources], rest[sources : 2 * sources]
    lengths = iter(rest[2 * sources + terms :])
    return Operands(
        query,
        keys,
        values,
        rest[2 * sources : 2 * sources + terms],
        [next(lengths) if there else None for there in layout.has_lengths],
    )


def _kernel_term(term: Tensor) -> Tensor:
    """Kernels read bool, float32, bfloat16 and float64 terms; torch widens float16 and narrows its gradient."""
    return term.float() if term.dtype == torch.float16 else term


def distinct(tensors: list[Tensor]) -> list[Tensor]:
    """Dynamo refuses one tensor in two slots of a Function; a view of it is another tensor."""
    if not torch.compiler.is_compiling():
        return tensors
    distinct: list[Tensor] = []
    for tensor in tensors:
        distinct.append(tensor.view_as(tensor) if any(tensor is other for other in distinct) else tensor)
    return distinct


def _absent_columns(problem: FusionProblem, mass: Tensor) -> Tensor:
    """Gives every absent source its zero column."""
    if len(problem.sources) == problem.num_slots:
        return mass
    column = {source.slot: i for i, source in enumerate(problem.sources)}
    zero = mass.new_zeros(mass.shape[:3])
    return torch.stack([mass[..., column[i]] if i in column else zero for i in range(problem.num_slots)], dim=-1)


@torch.library.register_fake("crossmodal::attention_fwd")
def _attention_fwd_fake(query, keys, values, lengths, terms, term_sources, is_causal, scale, return_mass, for_backward):  # type: ignore[no-untyped-def]
    batch, num_heads, seqlen_q, _ = query.shape
    accumulate = torch.float64 if query.dtype == torch.float64 else torch.float32
    out = order_of(query, seqlen_q, values[0].shape[3])
    lse = query.new_empty((batch, num_heads, seqlen_q), dtype=accumulate)
    mass = query.new_empty((batch, num_heads, seqlen_q, len(keys)) if return_mass else (0,), dtype=accumulate)
    statistics = query.new_empty((2 if for_backward else 0, batch * num_heads * seqlen_q), dtype=accumulate)
    return out, lse, mass, statistics


@torch.library.register_fake("crossmodal::attention_bwd")
def _attention_bwd_fake(  # type: ignore[no-untyped-def]
    dout,
    dlse,
    dmass,
    query,
    keys,
    values,
    lengths,
    terms,
    term_sources,
    out,
    lse,
    mass,
    is_causal,
    scale,
    wanted,
):
    gradients = [order_of(t, t.shape[2], t.shape[3]) for t in (query, *keys, *values)]
    gradients += [t.new_empty(t.shape) for t in terms]
    inputs = [query, *keys, *values, *terms]
    return [g if w else t.new_empty((0,)) for g, w, t in zip(gradients, wanted, inputs, strict=True)]
