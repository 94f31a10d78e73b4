"""The weighted sum for given weights."""

from typing import Any

import torch
from torch import Tensor

from crossmodal import _library  # noqa: F401  registers torch.ops.crossmodal
from crossmodal._arguments import weighted_sum_problem
from crossmodal._problem import WeightedSumProblem
from crossmodal.dispatch import fall_back, needs_gradient, tensor_refusals
from crossmodal.explain import Plan, plans
from crossmodal.ops._apply import apply
from crossmodal.ops._fusion import differentiates_again, distinct, gradients_of_reference, only_needed
from crossmodal.ops._plain import are_plain_weights
from crossmodal.ops._plans import weighted_plan
from crossmodal.reference.weighted_sum import run_reference


def weighted_sum(
    weights: Tensor, values: Tensor, *, lengths: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    r"""Sum of values by given weights, :math:`y_i = \sum_j w_{ij} x_j`.

    Args:
        weights: ``(..., seqlen_q, seqlen_k)``, float32, bfloat16, float16 or float64, 2-D to 5-D.
        values: ``(..., seqlen_k, head_dim)``, weights' dtype; leading dimensions broadcast.
        lengths: ``(batch,)`` int32 or int64; keys at or beyond are skipped.
        mask: bool, True = takes part, broadcast to ``(..., seqlen_q, seqlen_k)``.

    A skipped key is not multiplied by zero: where a key is skipped for every query, weights and values may hold NaN.
    Sums are float32 (float64 for float64).

    Returns:
        ``(..., seqlen_q, head_dim)``, weights' dtype.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes, devices or values that do not fit, naming the argument.

    Example:
        >>> crossmodal.weighted_sum(torch.tensor([[0.25, 0.75]]), torch.tensor([[4.0], [8.0]]))
        tensor([[7.]])
    """
    if are_plain_weights(weights, values, lengths, mask):
        if needs_gradient((weights, values)):
            out: Tensor = apply(WeightedSumFunction, None, None, weights, values)
            return out
        return torch.ops.crossmodal.weighted_sum_fwd.default(weights, values, None, None)
    problem = weighted_sum_problem(weights, values, lengths, mask)
    operands = [problem.weights, problem.values]
    reasons = tensor_refusals([problem.weights])
    if reasons:
        fall_back("weighted_sum", reasons)
        return run_reference(problem)
    if problem.mask is not None:
        problem = problem._replace(mask=problem.mask.expand(problem.weights.shape))
    if needs_gradient(operands):
        return problem.unfold(apply(WeightedSumFunction, problem.lengths, problem.mask, *distinct(operands)))
    return problem.unfold(
        torch.ops.crossmodal.weighted_sum_fwd.default(problem.weights, problem.values, problem.lengths, problem.mask)
    )


@plans(weighted_sum)
def _plan(arguments: dict[str, Any]) -> Plan:
    problem = weighted_sum_problem(**arguments)
    return weighted_plan("weighted_sum", problem, tensor_refusals([problem.weights]))


class WeightedSumFunction(torch.autograd.Function):
    """Compiled forward and backward; a second derivative goes through the formulas of the reference."""

    generate_vmap_rule = True

    @staticmethod
    def forward(lengths: Tensor | None, mask: Tensor | None, weights: Tensor, values: Tensor) -> Tensor:
        return torch.ops.crossmodal.weighted_sum_fwd.default(weights, values, lengths, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        lengths, mask, weights, values = ctx.saved_tensors
        needs = ctx.needs_input_grad[2:]
        if differentiates_again():

            def formulas(weights: Tensor, values: Tensor) -> tuple[Tensor]:
                return (run_reference(WeightedSumProblem(weights, values, lengths, mask, tuple(weights.shape[:2]))),)

            return (None, None, *gradients_of_reference(formulas, (weights, values), needs, [dout]))
        gradients = torch.ops.crossmodal.weighted_sum_bwd.default(dout, weights, values, lengths, mask, *needs)
        return (None, None, *only_needed(gradients, needs))


@torch.library.register_fake("crossmodal::weighted_sum_fwd")
def _weighted_sum_fwd_fake(weights, values, lengths, mask):  # type: ignore[no-untyped-def]
    return values.new_empty((values.shape[0], values.shape[1], weights.shape[2], values.shape[3]))


@torch.library.register_fake("crossmodal::weighted_sum_bwd")
def _weighted_sum_bwd_fake(dout, weights, values, lengths, mask, wants_dweights, wants_dvalues):  # type: ignore[no-untyped-def]
    dweights = weights.new_empty(weights.shape if wants_dweights else (0,))
    return dweights, values.new_empty(values.shape if wants_dvalues else (0,))
