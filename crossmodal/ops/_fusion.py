"""Canonical problem -> compiled operator, with its gradient. ``attention``, ``fuse`` and mass all end here."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossmodal import _library  # noqa: F401  registers torch.ops.crossmodal
from crossmodal._problem import FusionProblem, KeySource
from crossmodal.dispatch import fall_back, fusion_refusals, needs_gradient, second_derivative_refusals
from crossmodal.ops._apply import apply
from crossmodal.ops._directions import in_each_direction
from crossmodal.ops._fakes import order_of
from crossmodal.ops._precision import allows_tf32
from crossmodal.reference.fuse import draw_seed, nothing_to_attend, run_reference
from crossmodal.types import FusionResult


class ScoreOptions(NamedTuple):
    """How products become weights: the numbers that every attention operator takes, in its order."""

    scale: float
    softcap: float = 0.0
    dropout_p: float = 0.0
    window: tuple[int, int] = (-1, -1)
    lower_right: bool = False
    allow_tf32: bool = False


class Layout(NamedTuple):
    """Which of the tensors in an operator call is what; everything that is not a tensor."""

    has_lengths: tuple[bool, ...]
    term_sources: tuple[int, ...]
    has_sink: bool
    has_query_lengths: bool
    has_seed: bool
    options: ScoreOptions
    return_mass: bool


class Operands(NamedTuple):
    """The tensors of an operator call, as its schema groups them."""

    query: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    terms: list[Tensor]
    sink: Tensor | None
    key_lengths: list[Tensor | None]
    query_lengths: Tensor | None
    seed: Tensor | None

    @property
    def differentiable(self) -> list[Tensor]:
        return [self.query, *self.keys, *self.values, *self.terms, *([] if self.sink is None else [self.sink])]

    @property
    def constant(self) -> list[Tensor]:
        return [t for t in (*self.key_lengths, self.query_lengths, self.seed) if t is not None]


def run_fusion(op: str, problem: FusionProblem, *, return_lse: bool, return_mass: bool) -> FusionResult:
    """Runs the kernel that fits, or the reference where none does (see `crossmodal.dispatch`)."""
    if not problem.sources:
        return nothing_to_attend(problem, return_lse=return_lse, return_mass=return_mass)
    reasons = fusion_refusals(problem)
    if reasons:
        fall_back(op, reasons)
        return run_reference(problem, return_lse=return_lse, return_mass=return_mass)

    layout, operands = describe(problem, return_mass)
    out, lse, mass = evaluate(layout, operands)
    return FusionResult(
        problem.unfold(out),
        problem.unfold(lse) if return_lse else None,
        problem.unfold(_absent_columns(problem, mass)) if return_mass else None,
    )


def evaluate(layout: Layout, operands: Operands) -> tuple[Tensor, Tensor, Tensor]:
    """out, lse and mass, differentiable where that is asked for."""
    if needs_gradient(operands.differentiable):
        found = apply(FusionFunction, layout, *distinct([*operands.differentiable, *operands.constant]))
    else:
        found = call_forward(layout, operands, for_backward=False)
    out, lse, mass, _ = found
    return out, lse, mass


def describe(problem: FusionProblem, return_mass: bool) -> tuple[Layout, Operands]:
    sources = problem.sources
    terms = [(i, term) for i, source in enumerate(sources) for term in source.terms]
    if not terms and torch.compiler.is_exporting():
        # AOTInductor of torch 2.13 hands an empty list to an operator as None (pytorch/pytorch#194324), which it
        # refuses: a mask that hides nothing takes the list's place.
        terms = [(0, torch.ones((1, 1, 1, 1), dtype=torch.bool, device=problem.query.device))]
    seed = problem.dropout_seed
    if problem.dropout_p == 0.0:
        seed = None
    elif seed is None:
        seed = draw_seed(problem.query.device)
    layout = Layout(
        has_lengths=tuple(source.lengths is not None for source in sources),
        term_sources=tuple(i for i, _ in terms),
        has_sink=problem.sink is not None,
        has_query_lengths=problem.query_lengths is not None,
        has_seed=seed is not None,
        options=score_options(problem),
        return_mass=return_mass,
    )
    operands = Operands(
        problem.query,
        [source.key for source in sources],
        [source.value for source in sources],
        [term for _, term in terms],
        kernel_sink(problem.sink, problem.query.dtype),
        [source.lengths for source in sources],
        problem.query_lengths,
        seed,
    )
    return layout, operands


def score_options(problem: Any) -> ScoreOptions:
    """Of a fusion or a packed problem; causal is a window that ends at the query's own position."""
    left, right = problem.window_size
    if problem.is_causal:
        right = 0
    return ScoreOptions(
        problem.scale,
        problem.softcap,
        problem.dropout_p,
        (left, right),
        problem.causal_align == "lower_right",
        allows_tf32(problem.query),
    )


def kernel_sink(sink: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(1, num_heads) in the accumulator's dtype, as kernels read it."""
    return None if sink is None else sink.to(accumulator(dtype)).unsqueeze(0)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, lse, mass and weights."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _arguments(layout: Layout, x: Operands) -> tuple[Any, ...]:
    """What every operator of attention takes, in its order."""
    lists = x.keys, x.values, x.key_lengths, x.terms, layout.term_sources
    return x.query, *lists, x.query_lengths, x.sink, x.seed


def call_forward(layout: Layout, x: Operands, *, for_backward: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out, lse, mass, and the row statistics that the backward operator rebuilds the weights from."""
    return torch.ops.crossmodal.attention_fwd.default(
        *_arguments(layout, x),
        *layout.options,
        layout.return_mass,
        for_backward,
    )


class FusionFunction(torch.autograd.Function):
    """Compiled forward and backward; the gradient of backward is `FusionGradient`'s."""

    generate_vmap_rule = True

    @staticmethod
    def forward(layout: Layout, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return call_forward(layout, operands_of(layout, tensors), for_backward=True)

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
        if not layout.return_mass:
            dmass = None
        x = operands_of(layout, tensors)
        needs = ctx.needs_input_grad[1 : 1 + len(x.differentiable)]
        rest = (None,) * len(x.constant)
        if dout is None and dlse is None and dmass is None:
            return (None, *(None,) * len(tensors))
        if dout is None:
            dout = torch.zeros_like(out)
        if differentiates_again():
            again = differentiable_gradients(layout, x, needs, (dout, dlse, dmass), out, statistics, mass)
            return (None, *again, *rest)
        gradients = call_backward(layout, x, needs, dout, dlse, dmass, out, statistics, mass)
        return (None, *only_needed(gradients, needs), *rest)


def call_backward(
    layout: Layout,
    x: Operands,
    needs: Sequence[bool],
    dout: Tensor,
    dlse: Tensor | None,
    dmass: Tensor | None,
    *results: Tensor,
) -> Sequence[Tensor]:
    """One gradient for each of `Operands.differentiable`, empty if not needed. Results: out, statistics, mass."""

    def gradients(*cotangents: Tensor | None) -> list[Tensor]:
        return torch.ops.crossmodal.attention_bwd.default(
            *cotangents,
            *_arguments(layout, x),
            *results,
            *layout.options,
            [int(needed) for needed in needs],
        )

    return in_each_direction(gradients, dout, dlse, dmass)


class FusionGradient(torch.autograd.Function):
    """Backward as a function of its own: the gradients that are needed, which can be differentiated once more.

    A third derivative goes through the formulas of the reference.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        layout: Layout,
        needs: Sequence[bool],
        dout: Tensor,
        dlse: Tensor | None,
        dmass: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        *inputs, out, statistics, mass = tensors
        x = operands_of(layout, inputs)
        gradients = call_backward(layout, x, needs, dout, dlse, dmass, out, statistics, mass)
        return tuple(g for g, needed in zip(gradients, needs, strict=True) if needed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        layout, needs, dout, dlse, dmass, *tensors = inputs
        ctx.layout, ctx.needs = layout, needs
        # Neither out nor mass: the gradient of backward reads the weights themselves.
        ctx.save_for_backward(dout, dlse, dmass, *tensors[:-3], tensors[-2])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *flowing: Tensor | None) -> tuple[Tensor | None, ...]:
        layout = ctx.layout
        dout, dlse, dmass, *tensors, statistics = ctx.saved_tensors
        x = operands_of(layout, tensors)
        wanted = ctx.needs_input_grad[2 : 5 + len(x.differentiable)]
        rest = (None,) * (len(x.constant) + 3)
        if all(g is None for g in flowing):
            return (None, None, *(None,) * len(wanted), *rest)
        if differentiates_again():

            def gradients(*leaves: Tensor) -> list[Tensor | None]:
                again = operands_of(layout, [*leaves[3:], *x.constant])
                found = gradients_by_formula(layout, again, ctx.needs, leaves[:3])
                return [g for g, needed in zip(found, ctx.needs, strict=True) if needed]

            inputs = [dout, dlse, dmass, *x.differentiable]
            return (None, None, *gradients_of_reference(gradients, inputs, wanted, flowing), *rest)
        found = call_double_backward(layout, x, ctx.needs, flowing, (dout, dlse, dmass), statistics, wanted)
        return (None, None, *only_needed(found, wanted), *rest)


def differentiable_gradients(
    layout: Layout, x: Operands, needs: Sequence[bool], cotangents: Sequence[Tensor | None], *results: Tensor
) -> list[Tensor | None]:
    """What `call_backward` returns, None where it is not needed, with a graph of its own."""
    if second_derivative_refusals(x.query, layout.options.dropout_p):
        return gradients_by_formula(layout, x, needs, cotangents)
    rest = (*x.differentiable, *x.constant, *results)
    found = iter(in_each_direction(lambda *c: apply(FusionGradient, layout, needs, *c, *rest), *cotangents))
    return [next(found) if needed else None for needed in needs]


def call_double_backward(
    layout: Layout,
    x: Operands,
    needs: Sequence[bool],
    flowing: Sequence[Tensor | None],
    given: Sequence[Tensor | None],
    statistics: Tensor,
    wanted: Sequence[bool],
) -> Sequence[Tensor]:
    """The gradients of what backward was ``given``, (dout, dlse, dmass), and of `Operands.differentiable`.

    ``flowing`` has one entry for each gradient that backward returned, those that ``needs`` names.
    """
    incoming = iter(flowing)
    back = [next(incoming) if needed else None for needed in needs]
    sources, terms = len(x.keys), len(x.terms)
    first_term = 1 + 2 * sources

    def gradients(*cotangents: Tensor | None) -> list[Tensor]:
        back, given = cotangents[: len(needs)], cotangents[len(needs) :]
        return torch.ops.crossmodal.attention_double_bwd.default(
            back[0],
            back[1 : 1 + sources],
            back[1 + sources : first_term],
            back[first_term : first_term + terms],
            None if x.sink is None else back[-1],
            *given,
            *_arguments(layout, x),
            statistics,
            *layout.options,
            [int(w) for w in wanted],
        )

    return in_each_direction(gradients, *back, *given)


def gradients_by_formula(
    layout: Layout, x: Operands, needs: Sequence[bool], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of `Operands.differentiable` with a graph of their own, whatever is asked of it."""
    problem = problem_of(layout, x)

    def outputs(*leaves: Tensor) -> FusionResult:
        return run_reference(with_differentiable(problem, leaves), return_lse=True, return_mass=layout.return_mass)

    return gradients_of_reference(outputs, x.differentiable, needs, cotangents)


def differentiates_again() -> bool:
    """Whether the gradient about to be computed is itself differentiated: create_graph=True, torch.func, a tangent."""
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or torch.autograd.forward_ad._current_level >= 0


def only_needed(gradients: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    return [g if needed else None for g, needed in zip(gradients, needs, strict=True)]


def gradients_of_reference(
    function: Callable[..., Sequence[Tensor | None]],
    inputs: Sequence[Tensor | None],
    needs: Sequence[bool],
    cotangents: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The same gradients with a graph of their own: what `torch.func.vjp` finds in the formulas of the reference."""
    flowing = [i for i, g in enumerate(cotangents) if g is not None]
    wanted = [i for i, needed in enumerate(needs) if needed]

    def of_wanted(*leaves: Tensor) -> list[Tensor | None]:
        operands = list(inputs)
        for i, leaf in zip(wanted, leaves, strict=True):
            operands[i] = leaf
        outputs = function(*operands)
        return [outputs[i] for i in flowing]

    pull = torch.func.vjp(of_wanted, *(inputs[i] for i in wanted))[1]
    found = dict(zip(wanted, pull([cotangents[i] for i in flowing]), strict=True))
    return [found.get(i) for i in range(len(inputs))]


def problem_of(layout: Layout, x: Operands) -> FusionProblem:
    """The problem that an operator call evaluates."""
    sources = tuple(
        KeySource(
            x.keys[s],
            x.values[s],
            x.key_lengths[s],
            tuple(t for t, owner in zip(x.terms, layout.term_sources, strict=True) if owner == s),
            s,
        )
        for s in range(len(x.keys))
    )
    options = layout.options
    return FusionProblem(
        query=x.query,
        sources=sources,
        num_slots=len(sources),
        lead_shape=tuple(x.query.shape[:2]),
        scale=options.scale,
        causal_align="lower_right" if options.lower_right else "upper_left",
        window_size=options.window,
        softcap=options.softcap,
        sink=None if x.sink is None else x.sink[0],
        query_lengths=x.query_lengths,
        dropout_p=options.dropout_p,
        dropout_seed=x.seed,
    )


def with_differentiable(problem: FusionProblem, leaves: Sequence[Tensor]) -> FusionProblem:
    """The problem with other tensors in the place of `Operands.differentiable`."""
    count = len(problem.sources)
    keys, values = leaves[1 : 1 + count], leaves[1 + count : 1 + 2 * count]
    rest = iter(leaves[1 + 2 * count :])
    sources = tuple(
        source._replace(key=keys[s], value=values[s], terms=tuple(next(rest) for _ in source.terms))
        for s, source in enumerate(problem.sources)
    )
    sink = None if problem.sink is None else next(rest)[0]
    return problem._replace(query=leaves[0], sources=sources, sink=sink)


def operands_of(layout: Layout, tensors: Sequence[Tensor]) -> Operands:
    """The inverse of `Operands.differentiable` followed by `Operands.constant`."""
    sources, terms = len(layout.has_lengths), len(layout.term_sources)
    rest = iter(tensors)

    def take(count: int) -> list[Tensor]:
        return [next(rest) for _ in range(count)]

    def take_if(there: bool) -> Tensor | None:
        return next(rest) if there else None

    return Operands(
        next(rest),
        take(sources),
        take(sources),
        take(terms),
        take_if(layout.has_sink),
        [take_if(there) for there in layout.has_lengths],
        take_if(layout.has_query_lengths),
        take_if(layout.has_seed),
    )


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


# The arguments that follow the tensors of interest are passed on by position, whatever they are.
@torch.library.register_fake("crossmodal::attention_fwd")
def _attention_fwd_fake(query, keys, values, *rest):  # type: ignore[no-untyped-def]
    return_mass, for_backward = rest[-2:]
    batch, num_heads, seqlen_q, _ = query.shape
    accumulate = accumulator(query.dtype)
    out = order_of(query, seqlen_q, values[0].shape[3])
    lse = query.new_empty((batch, num_heads, seqlen_q), dtype=accumulate)
    mass = query.new_empty((batch, num_heads, seqlen_q, len(keys)) if return_mass else (0,), dtype=accumulate)
    statistics = query.new_empty((2 if for_backward else 0, batch * num_heads * seqlen_q), dtype=accumulate)
    return out, lse, mass, statistics


@torch.library.register_fake("crossmodal::attention_double_bwd")
def _attention_double_bwd_fake(ddq, ddk, ddv, ddterms, ddsink, dout, dlse, dmass, query, keys, values, *rest):  # type: ignore[no-untyped-def]
    _, terms, _, _, sink, *_, wanted = rest
    rows, accumulate = query.shape[:3], accumulator(query.dtype)
    of_backward = [
        order_of(dout, dout.shape[2], dout.shape[3]),
        query.new_empty(rows, dtype=accumulate),
        query.new_empty((*rows, len(keys)), dtype=accumulate),
    ]
    inputs = [query, *keys, *values, *terms, *([] if sink is None else [sink])]
    gradients = [order_of(t, t.shape[2], t.shape[3]) for t in (query, *keys, *values)]
    gradients += [t.new_empty(t.shape) for t in inputs[len(gradients) :]]
    return [
        g if w else t.new_empty((0,))
        for g, w, t in zip([*of_backward, *gradients], wanted, [query, query, query, *inputs], strict=True)
    ]


@torch.library.register_fake("crossmodal::attention_bwd")
def _attention_bwd_fake(dout, dlse, dmass, query, keys, values, lengths, terms, owners, query_lengths, sink, *rest):  # type: ignore[no-untyped-def]
    gradients = [order_of(t, t.shape[2], t.shape[3]) for t in (query, *keys, *values)]
    inputs = [query, *keys, *values, *terms]
    gradients += [t.new_empty(t.shape) for t in terms]
    if sink is not None:
        inputs.append(sink)
        gradients.append(sink.new_empty(sink.shape))
    wanted = rest[-1]
    return [g if w else t.new_empty((0,)) for g, w, t in zip(gradients, wanted, inputs, strict=True)]
