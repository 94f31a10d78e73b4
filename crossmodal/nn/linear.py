"""A linear layer by the faster library."""

from torch import Tensor, nn

from crossmodal.nn._linear import linear


class Linear(nn.Linear):
    """:class:`torch.nn.Linear` whose products go through oneDNN where that is faster than torch's own way.

    Same constructor, parameters, checkpoints and gradients. Which library is faster is measured once in a process for
    each number of threads, in some 100 ms at the first product of more than four million multiply-adds; the environment
    variable ``CROSSMODAL_LINEAR`` ("onednn" or "torch") decides instead. That is float32; bfloat16 is oneDNN's in
    torch, too, and saves a pass here. Other dtypes, compiled, traced and exported code go torch's way. See also
    :func:`packed_weights`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        return linear(input, self.weight, self.bias)
