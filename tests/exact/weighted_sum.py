"""Weighted sums, of weights that are given and of weights that are a softmax of given scores."""

import numpy as np
from torch import Tensor

from tests.exact.arrays import Array, Exact, array, within


class ExactWeightedSum:
    """y = W X over the keys that take part, 4-D."""

    def __init__(
        self, weights: Tensor, values: Tensor, lengths: Tensor | None, mask: Tensor | None, *, precision: type
    ) -> None:
        self.precision = precision
        batch, _, _, seqlen_k = weights.shape
        there = within(lengths, batch, seqlen_k)
        self.values = np.where(there[:, None, :, None], array(values, precision), 0)
        self.taking_part = np.ones(weights.shape, bool) & there[:, None, None]
        if mask is not None:
            self.taking_part &= mask.numpy()
        self.weights = self._weights(array(weights, precision))
        self.results = {"out": Exact(self.weights @ self.values, np.abs(self.weights) @ np.abs(self.values))}

    def _weights(self, given: Array) -> Array:
        return np.where(self.taking_part, given, 0)

    def backward(self, dout: Tensor) -> dict[str, Exact]:
        g = array(dout, self.precision)
        return {
            "weights": Exact(
                np.where(self.taking_part, g @ self.values.swapaxes(2, 3), 0),
                np.where(self.taking_part, np.abs(g) @ np.abs(self.values).swapaxes(2, 3), 0),
            ),
            "values": Exact(self.weights.swapaxes(2, 3) @ g, np.abs(self.weights).swapaxes(2, 3) @ np.abs(g)),
        }


class ExactSoftmaxWeightedSum(ExactWeightedSum):
    """The same with W = softmax(scale * scores) over the keys that take part; a score of -inf hides its key."""

    def __init__(
        self,
        scores: Tensor,
        values: Tensor,
        lengths: Tensor | None,
        mask: Tensor | None,
        *,
        scale: float,
        precision: type,
    ) -> None:
        self.scale = precision(scale)
        super().__init__(scores, values, lengths, mask, precision=precision)

    def _weights(self, given: Array) -> Array:
        self.taking_part &= given != -np.inf
        scaled = np.where(self.taking_part, self.scale * np.where(self.taking_part, given, 0), -np.inf)
        top = scaled.max(axis=3, keepdims=True, initial=-np.inf)
        exponentials = np.exp(scaled - np.where(top == -np.inf, 0, top))
        total = exponentials.sum(axis=3, keepdims=True)
        return exponentials / np.where(total == 0, 1, total)

    def backward(self, dout: Tensor) -> dict[str, Exact]:
        found = super().backward(dout)
        dweights, size = found["weights"]
        delta = (self.weights * dweights).sum(axis=3, keepdims=True)
        size = self.weights * (size + (self.weights * size).sum(axis=3, keepdims=True))
        found["weights"] = Exact(self.scale * self.weights * (dweights - delta), np.abs(self.scale) * size)
        return found
