"""The weighted sum whose weights are the softmax of given scores."""

from typing import Any

import torch
from torch import Tensor

from crossmodal import _library  # noqa: F401  registers torch.ops.crossmodal
from crossmodal._arguments import softmax_weighted_sum_problem
from crossmodal._problem import SoftmaxWeightedSumProblem
from crossmodal.dispatch import fall_back, needs_gradient, tensor_refusals, width_refusals
from crossmodal.explain import Plan, plans
from crossmodal.ops._apply import apply
from crossmodal.ops._fusion import accumulator, differentiates_again, distinct, gradients_of_reference, only_needed
from crossmodal.ops._plain import are_plain_weights
from crossmodal.ops._plans import weighted_plan
from crossmodal.reference.softmax_weighted_sum import run_reference


def softmax_weighted_sum(
    scores: Tensor,
    values: Tensor,
    *,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    r"""Sum of values by the softmax of scores, for scores that are no dot products.

    .. math:: w_{ij} = e^{\mathrm{scale} \, s_{ij}} / \textstyle\sum_{j'} e^{\mathrm{scale} \, s_{ij'}}, \quad
              y_i = \textstyle\sum_j w_{ij} x_j

    (Bahdanau et al., 2015, "Neural Machine Translation by Jointly Learning to Align and Translate", eq. 5 and 6, for
    scores of any origin.) Equals :func:`weighted_sum` with ``softmax(scale * scores)`` as weights, which are not
    stored. A query of which every key is hidden gives 0 with gradient 0.

    Args:
        scores: ``(..., seqlen_q, seqlen_k)``, float32, bfloat16, float16 or float64, 2-D to 5-D; -inf hides.
        values: ``(..., seqlen_k, head_dim)``, scores' dtype; leading dimensions broadcast.
        lengths: ``(batch,)`` int32 or int64; keys at or beyond are hidden.
        mask: bool, True = takes part, broadcast to ``(..., seqlen_q, seqlen_k)``.
        scale: factor of the scores, 1 if None.

    Where a key is hidden by ``lengths`` or ``mask``, its score may hold NaN; where it is hidden for every query, its
    values may as well. Softmax and sums are float32 (float64 for float64).

    Returns:
        ``(..., seqlen_q, head_dim)``, scores' dtype.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes, devices or values that do not fit, naming the argument.

    Example:
        >>> scores = torch.tensor([[0.0, 0.0, float("-inf")]])
        >>> crossmodal.softmax_weighted_sum(scores, torch.tensor([[4.0], [8.0], [7.0]]))
        tensor([[6.]])
    """
    if scale is None and are_plain_weights(scores, values, lengths, mask) and scores.is_cpu:
        if needs_gradient((scores, values)):
            out, _ = apply(SoftmaxWeightedSumFunction, 1.0, None, None, scores, values)
        else:
            out, _ = torch.ops.crossmodal.softmax_weighted_sum_fwd.default(scores, values, None, None, 1.0, False)
        return out
    problem = softmax_weighted_sum_problem(scores, values, lengths, mask, scale)
    reasons = _refusals(problem)
    if reasons:
        fall_back("softmax_weighted_sum", reasons)
        return run_reference(problem)
    operands, mask = [problem.scores, problem.values], problem.mask
    if mask is not None:
        mask = mask.expand(problem.scores.shape)
    if needs_gradient(operands):
        out, _ = apply(SoftmaxWeightedSumFunction, problem.scale, problem.lengths, mask, *distinct(operands))
    else:
        out, _ = torch.ops.crossmodal.softmax_weighted_sum_fwd.default(
            *operands, problem.lengths, mask, problem.scale, False
        )
    return problem.unfold(out)


@plans(softmax_weighted_sum)
def _plan(arguments: dict[str, Any]) -> Plan:
    problem = softmax_weighted_sum_problem(**arguments)
    return weighted_plan("softmax_weighted_sum", problem, _refusals(problem))


def _refusals(problem: SoftmaxWeightedSumProblem) -> list[str]:
    # To kernels it is attention without features: no width but that of the values.
    return tensor_refusals([problem.scores]) + width_refusals(problem.values, 0, problem.values.shape[3])


class SoftmaxWeightedSumFunction(torch.autograd.Function):
    """Compiled forward and backward; a second derivative goes through the formulas of the reference."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        scale: float, lengths: Tensor | None, mask: Tensor | None, scores: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        return torch.ops.crossmodal.softmax_weighted_sum_fwd.default(scores, values, lengths, mask, scale, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.scale = inputs[0]
        ctx.save_for_backward(*inputs[1:], *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, dout: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        lengths, mask, scores, values, out, statistics = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:]
        if differentiates_again():

            def formulas(scores: Tensor, values: Tensor) -> tuple[Tensor]:
                lead = tuple(scores.shape[:2])
                return (run_reference(SoftmaxWeightedSumProblem(scores, values, lengths, mask, lead, ctx.scale)),)

            return (None, None, None, *gradients_of_reference(formulas, (scores, values), needs, [dout]))
        gradients = torch.ops.crossmodal.softmax_weighted_sum_bwd.default(
            dout, scores, values, lengths, mask, out, statistics, ctx.scale, *needs
        )
        return (None, None, None, *only_needed(gradients, needs))


@torch.library.register_fake("crossmodal::softmax_weighted_sum_fwd")
def _softmax_weighted_sum_fwd_fake(scores, values, lengths, mask, scale, for_backward):  # type: ignore[no-untyped-def]
    batch, num_heads, seqlen_q = scores.shape[:3]
    statistics = (2 if for_backward else 0, batch * num_heads * seqlen_q)
    return (
        values.new_empty((batch, num_heads, seqlen_q, values.shape[3])),
        values.new_empty(statistics, dtype=accumulator(values.dtype)),
    )


@torch.library.register_fake("crossmodal::softmax_weighted_sum_bwd")
def _softmax_weighted_sum_bwd_fake(dout, scores, values, lengths, mask, out, statistics, scale, *wants):  # type: ignore[no-untyped-def]
    return scores.new_empty(scores.shape if wants[0] else (0,)), values.new_empty(values.shape if wants[1] else (0,))
