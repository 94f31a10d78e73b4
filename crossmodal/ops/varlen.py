"""Attention over packed sequences of different lengths."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossmodal import _library  # noqa: F401  registers torch.ops.crossmodal
from crossmodal._arguments import varlen_problem
from crossmodal._problem import VarlenProblem
from crossmodal.dispatch import fall_back, needs_gradient, second_derivative_refusals, varlen_refusals
from crossmodal.explain import Plan, plans
from crossmodal.ops._apply import apply
from crossmodal.ops._directions import in_each_direction
from crossmodal.ops._fusion import (
    ScoreOptions,
    accumulator,
    differentiates_again,
    distinct,
    gradients_of_reference,
    kernel_sink,
    only_needed,
    score_options,
)
from crossmodal.ops._plans import varlen_plan
from crossmodal.reference.fuse import draw_seed
from crossmodal.reference.varlen import run_reference


def attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    causal_align: str = "upper_left",
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    sink: Tensor | None = None,
    return_lse: bool = False,
    dropout_seed: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Attention within each of several sequences that lie one after the other, without padding.

    Sequence b has the rows ``cu_seqlens_q[b]`` to ``cu_seqlens_q[b + 1]`` of query and the rows ``cu_seqlens_k[b]`` to
    ``cu_seqlens_k[b + 1]`` of key and value, the convention of FlashAttention (Dao, 2023, ``flash_attn_varlen_func``):

    .. math:: s_{ij} = \mathrm{scale} \langle q_i, k_j \rangle, \quad
              w_{ij} = e^{s_{ij}} / \textstyle\sum_{j'} e^{s_{ij'}}, \quad y_i = \textstyle\sum_j w_{ij} v_j

    (Vaswani et al., 2017, eq. 1) over the keys j of query i's own sequence. Queries that belong to no sequence give 0
    with gradient 0; such rows of query, key and value may hold NaN.

    Args:
        query: ``(total_q, num_heads, head_dim)``, float32, bfloat16, float16 or float64.
        key: ``(total_k, num_heads, head_dim)``, query's dtype.
        value: ``(total_k, num_heads, head_dim_v)``, query's dtype.
        cu_seqlens_q: ``(batch + 1,)`` int32 on query's device: 0, then where each sequence ends.
        cu_seqlens_k: the same for key and value.
        max_seqlen_q: length of the longest sequence of query, or more.
        max_seqlen_k: length of the longest sequence of key, or more.
        enable_gqa: key and value may have fewer heads, num_heads % num_heads_k == 0.
        dropout_p, is_causal, scale, causal_align, window_size, softcap, sink, dropout_seed: as for :func:`attention`;
            positions count from the start of each sequence.
        return_lse: also return the logarithm of the sum of exponentials.

    Returns:
        ``(total_q, num_heads, head_dim_v)`` in query's dtype; with ``return_lse`` also lse ``(num_heads, total_q)``,
        float32 (float64 for float64), natural logarithm, -inf where nothing is seen.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes, devices or values that do not fit, naming the argument.

    Example:
        >>> q, k = torch.randn(5, 8, 64), torch.randn(300, 8, 64)
        >>> ends_q, ends_k = torch.tensor([0, 2, 5], dtype=torch.int32), torch.tensor([0, 197, 300], dtype=torch.int32)
        >>> crossmodal.attention_varlen(q, k, k, ends_q, ends_k, 3, 197).shape
        torch.Size([5, 8, 64])
    """
    problem = varlen_problem(
        query,
        key,
        value,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        is_causal,
        scale,
        enable_gqa,
        causal_align,
        window_size,
        softcap,
        sink,
        dropout_seed,
    )
    out, lse = run_varlen(problem)
    return (out, lse) if return_lse else out


@plans(attention_varlen)
def _plan(arguments: dict[str, Any]) -> Plan:
    del arguments["return_lse"]
    problem = varlen_problem(**arguments)
    again = second_derivative_refusals(problem.query, problem.dropout_p)
    return varlen_plan("attention_varlen", problem, varlen_refusals(problem), again)


def run_varlen(problem: VarlenProblem) -> tuple[Tensor, Tensor]:
    """Runs the kernel that fits, or the reference where none does; out and lse."""
    reasons = varlen_refusals(problem)
    if reasons:
        fall_back("attention_varlen", reasons)
        return run_reference(problem)
    x = describe(problem)
    layout = VarlenLayout(
        x.sink is not None, x.seed is not None, problem.max_seqlen_q, problem.max_seqlen_k, score_options(problem)
    )
    if needs_gradient(x.differentiable):
        out, lse, _ = apply(VarlenFunction, layout, *distinct([*x.differentiable, *x.constant]))
    else:
        out, lse, _ = call_forward(layout, x, for_backward=False)
    return out, lse


class VarlenLayout(NamedTuple):
    """Everything in an operator call that is not a tensor, and which of the optional tensors are there."""

    has_sink: bool
    has_seed: bool
    max_seqlen_q: int
    max_seqlen_k: int
    options: ScoreOptions


class VarlenOperands(NamedTuple):
    """The tensors of an operator call, as its schema groups them."""

    query: Tensor
    key: Tensor
    value: Tensor
    sink: Tensor | None  # (1, num_heads)
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    seed: Tensor | None

    @property
    def differentiable(self) -> list[Tensor]:
        return [self.query, self.key, self.value, *([] if self.sink is None else [self.sink])]

    @property
    def constant(self) -> list[Tensor]:
        return [self.cu_seqlens_q, self.cu_seqlens_k, *([] if self.seed is None else [self.seed])]


def describe(problem: VarlenProblem) -> VarlenOperands:
    seed = problem.dropout_seed
    if problem.dropout_p == 0.0:
        seed = None
    elif seed is None:
        seed = draw_seed(problem.query.device)
    sink = kernel_sink(problem.sink, problem.query.dtype)
    return VarlenOperands(
        problem.query, problem.key, problem.value, sink, problem.cu_seqlens_q, problem.cu_seqlens_k, seed
    )


def call_forward(layout: VarlenLayout, x: VarlenOperands, *, for_backward: bool) -> tuple[Tensor, Tensor, Tensor]:
    """out, lse and the row statistics that the backward operator rebuilds the weights from."""
    return torch.ops.crossmodal.attention_varlen_fwd.default(*_arguments(layout, x), *layout.options, for_backward)


def _arguments(layout: VarlenLayout, x: VarlenOperands) -> tuple[Any, ...]:
    ends = (x.cu_seqlens_q, x.cu_seqlens_k, layout.max_seqlen_q, layout.max_seqlen_k)
    return (x.query, x.key, x.value, *ends, x.sink, x.seed)


def _operands(layout: VarlenLayout, tensors: tuple[Tensor, ...] | list[Tensor]) -> VarlenOperands:
    """The inverse of `VarlenOperands.differentiable` followed by `VarlenOperands.constant`."""
    query, key, value, *rest = tensors
    sink = rest.pop(0) if layout.has_sink else None
    seed = rest.pop() if layout.has_seed else None
    cu_seqlens_q, cu_seqlens_k = rest
    return VarlenOperands(query, key, value, sink, cu_seqlens_q, cu_seqlens_k, seed)


class VarlenFunction(torch.autograd.Function):
    """Compiled forward and backward; the gradient of backward is `VarlenGradient`'s."""

    generate_vmap_rule = True

    @staticmethod
    def forward(layout: VarlenLayout, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return call_forward(layout, _operands(layout, tensors), for_backward=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        layout, *tensors = inputs
        out, _, statistics = output
        ctx.layout = layout
        ctx.save_for_backward(*tensors, out, statistics)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        layout = ctx.layout
        *tensors, out, statistics = ctx.saved_tensors
        x = _operands(layout, tensors)
        needs = ctx.needs_input_grad[1 : 1 + len(x.differentiable)]
        rest = (None,) * len(x.constant)
        if dout is None and dlse is None:
            return (None, *(None,) * len(tensors))
        if dout is None:
            dout = torch.zeros_like(out)
        if differentiates_again():
            if second_derivative_refusals(x.query, layout.options.dropout_p):
                return (None, *gradients_by_formula(layout, x, needs, (dout, dlse)), *rest)
            inputs = (*tensors, out, statistics)
            found = in_each_direction(lambda *c: apply(VarlenGradient, layout, needs, *c, *inputs), dout, dlse)
            gradients = iter(found)
            return (None, *(next(gradients) if needed else None for needed in needs), *rest)
        return (None, *only_needed(call_backward(layout, x, needs, dout, dlse, out, statistics), needs), *rest)


def call_backward(
    layout: VarlenLayout,
    x: VarlenOperands,
    needs: Sequence[bool],
    dout: Tensor,
    dlse: Tensor | None,
    out: Tensor,
    statistics: Tensor,
) -> Sequence[Tensor]:
    """One gradient for each of `VarlenOperands.differentiable`, empty where none is needed."""

    def gradients(*cotangents: Tensor | None) -> Sequence[Tensor]:
        return torch.ops.crossmodal.attention_varlen_bwd.default(
            *cotangents, *_arguments(layout, x), out, statistics, *layout.options, [int(needed) for needed in needs]
        )

    return in_each_direction(gradients, dout, dlse)


class VarlenGradient(torch.autograd.Function):
    """Backward as a function of its own, which can be differentiated once more by a kernel, as `FusionGradient`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        layout: VarlenLayout, needs: Sequence[bool], dout: Tensor, dlse: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        *inputs, out, statistics = tensors
        gradients = call_backward(layout, _operands(layout, inputs), needs, dout, dlse, out, statistics)
        return tuple(g for g, needed in zip(gradients, needs, strict=True) if needed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        layout, needs, dout, dlse, *tensors = inputs
        ctx.layout, ctx.needs = layout, needs
        ctx.save_for_backward(dout, dlse, *tensors[:-2], tensors[-1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *flowing: Tensor | None) -> tuple[Tensor | None, ...]:
        layout = ctx.layout
        dout, dlse, *tensors, statistics = ctx.saved_tensors
        x = _operands(layout, tensors)
        wanted = ctx.needs_input_grad[2 : 4 + len(x.differentiable)]
        rest = (None,) * (len(x.constant) + 2)
        if all(g is None for g in flowing):
            return (None, None, *(None,) * len(wanted), *rest)
        if differentiates_again():

            def gradients(*leaves: Tensor) -> list[Tensor | None]:
                again = _operands(layout, [*leaves[2:], *x.constant])
                found = gradients_by_formula(layout, again, ctx.needs, leaves[:2])
                return [g for g, needed in zip(found, ctx.needs, strict=True) if needed]

            inputs = [dout, dlse, *x.differentiable]
            return (None, None, *gradients_of_reference(gradients, inputs, wanted, flowing), *rest)
        incoming = iter(flowing)
        back = [next(incoming) if needed else None for needed in ctx.needs]
        back += [None] * (x.sink is None)

        def of_backward(*cotangents: Tensor | None) -> Sequence[Tensor]:
            return torch.ops.crossmodal.attention_varlen_double_bwd.default(
                *cotangents, *_arguments(layout, x), statistics, *layout.options, [int(w) for w in wanted]
            )

        found = in_each_direction(of_backward, *back, dout, dlse)
        return (None, None, *only_needed(found, wanted), *rest)


def gradients_by_formula(
    layout: VarlenLayout, x: VarlenOperands, needs: Sequence[bool], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of `VarlenOperands.differentiable` with a graph of their own, whatever is asked of it."""

    def outputs(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return run_reference(_problem(layout, _operands(layout, [*leaves, *x.constant])))

    return gradients_of_reference(outputs, x.differentiable, needs, cotangents)


def _problem(layout: VarlenLayout, x: VarlenOperands) -> VarlenProblem:
    """The problem that an operator call evaluates."""
    options = layout.options
    return VarlenProblem(
        x.query,
        x.key,
        x.value,
        x.cu_seqlens_q,
        x.cu_seqlens_k,
        layout.max_seqlen_q,
        layout.max_seqlen_k,
        scale=options.scale,
        causal_align="lower_right" if options.lower_right else "upper_left",
        window_size=options.window,
        softcap=options.softcap,
        sink=None if x.sink is None else x.sink[0],
        dropout_p=options.dropout_p,
        dropout_seed=x.seed,
    )


@torch.library.register_fake("crossmodal::attention_varlen_fwd")
def _attention_varlen_fwd_fake(query, key, value, *rest):  # type: ignore[no-untyped-def]
    for_backward = rest[-1]
    total, num_heads = query.shape[:2]
    accumulate = accumulator(query.dtype)
    return (
        query.new_empty((total, num_heads, value.shape[2])),
        query.new_empty((num_heads, total), dtype=accumulate),
        query.new_empty((2 if for_backward else 0, num_heads * total), dtype=accumulate),
    )


@torch.library.register_fake("crossmodal::attention_varlen_bwd")
def _attention_varlen_bwd_fake(dout, dlse, query, key, value, *rest):  # type: ignore[no-untyped-def]
    sink, wanted = rest[4], rest[-1]
    inputs = [query, key, value, *([] if sink is None else [sink])]
    return [t.new_empty(t.shape if w else (0,)) for w, t in zip(wanted, inputs, strict=True)]


@torch.library.register_fake("crossmodal::attention_varlen_double_bwd")
def _attention_varlen_double_bwd_fake(ddq, ddk, ddv, ddsink, dout, dlse, query, key, value, *rest):  # type: ignore[no-untyped-def]
    sink, wanted = rest[4], rest[-1]
    inputs = [query, key, value, *([] if sink is None else [sink])]
    of_backward = [
        dout.new_empty(dout.shape),
        query.new_empty((query.shape[1], query.shape[0]), dtype=accumulator(query.dtype)),
    ]
    gradients = [*of_backward, *(t.new_empty(t.shape) for t in inputs)]
    return [
        g if w else g.new_empty((0,), dtype=t.dtype)
        for g, w, t in zip(gradients, wanted, [query, query, *inputs], strict=True)
    ]
