"""What `associate` makes of the weights, and what flows back into them."""

import numpy as np
from torch import Tensor

from tests.exact.arrays import Array, Exact, array
from tests.exact.fusion import ExactFusion


class ExactAssociation:
    """A summary of a fusion's weights; with `indices`, the weights of these links (-1 = none)."""

    def __init__(self, fusion: ExactFusion, reduce: str | None, indices: Tensor | None = None) -> None:
        self.fusion, self.reduce = fusion, reduce
        self.indices = None if indices is None else indices.numpy()
        weights, deep = fusion.weights, fusion.depth * fusion.weights
        self.weights = Exact(weights, deep)
        self.log = np.log(np.where(weights > 0, weights, 1))
        if self.indices is not None:
            result = Exact(self._picked(weights), self._picked(deep))
        elif reduce is None:
            result = self.weights
        elif reduce == "heads":
            heads = max(1, weights.shape[1])
            result = Exact(weights.sum(axis=1) / heads, deep.sum(axis=1) / heads)
        elif reduce == "keys":
            result = Exact(weights.sum(axis=2), deep.sum(axis=2))
        elif reduce == "mass":
            result = fusion.results["mass"]
        else:
            assert reduce == "entropy"
            # d(-w log w) = -(log w + 1) dw
            size = (deep * (np.abs(self.log) + 1)).sum(axis=3)
            result = Exact(-(weights * self.log).sum(axis=3), size)
        self.results = {"associated": result}

    def _picked(self, weights: Array) -> Array:
        assert self.indices is not None
        # A column of zeros for -1 to point at.
        padded = np.concatenate([weights, np.zeros((*weights.shape[:3], 1), weights.dtype)], axis=3)
        return np.take_along_axis(padded, self.indices % padded.shape[3], axis=3)

    def backward(self, dassociated: Tensor) -> dict[str, Exact]:
        g = array(dassociated, self.fusion.precision)
        weights = self.fusion.weights
        if self.reduce == "mass":
            return self.fusion.backward(dmass=dassociated)
        if self.indices is not None:
            dweights = np.zeros((*weights.shape[:3], weights.shape[3] + 1), weights.dtype)
            np.put_along_axis(dweights, self.indices % dweights.shape[3], g, axis=3)
            dweights = dweights[..., :-1]
        elif self.reduce is None:
            dweights = g
        elif self.reduce == "heads":
            dweights = np.broadcast_to(g[:, None] / max(1, weights.shape[1]), weights.shape)
        elif self.reduce == "keys":
            dweights = np.broadcast_to(g[:, :, None], weights.shape)
        else:
            dweights = -g[..., None] * (self.log + 1)
            return self.fusion.backward(dweights=Exact(dweights, np.abs(g)[..., None] * (np.abs(self.log) + 1)))
        return self.fusion.backward(dweights=Exact(dweights, np.abs(dweights)))
