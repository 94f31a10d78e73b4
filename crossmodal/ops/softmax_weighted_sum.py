"""The weighted sum whose weights are the softmax of given scores."""

from torch import Tensor

from crossmodal._arguments import softmax_weighted_sum_problem
from crossmodal.dispatch import fall_back
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
    problem = softmax_weighted_sum_problem(scores, values, lengths, mask, scale)
    fall_back("softmax_weighted_sum", ["softmax_weighted_sum has no kernel yet"])
    return run_reference(problem)
