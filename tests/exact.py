"""The operators by their formulas, forward and backward, in numpy at a precision of choice.

Written a second time and on purpose not with torch: an error in `crossmodal.reference`, which kernels are compared
with too, cannot hide here. Gradients are the formulas, not automatic differentiation.
"""

import numpy as np
import torch
from torch import Tensor

from crossmodal import Source

Array = np.ndarray


def wider_than(dtype: torch.dtype) -> type:
    """The precision at which results in `dtype` count as exact."""
    return np.longdouble if dtype == torch.float64 else np.float64


def array(tensor: Tensor, precision: type) -> Array:
    tensor = tensor.detach()
    return tensor.double().numpy().astype(precision) if tensor.is_floating_point() else tensor.numpy()


def reduced(gradient: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of what was broadcast from `shape`."""
    extra = gradient.ndim - len(shape)
    gradient = gradient.sum(axis=tuple(range(extra)))
    axes = tuple(d for d, size in enumerate(shape) if size == 1 and gradient.shape[d] != 1)
    return gradient.sum(axis=axes, keepdims=True)


class ExactFusion:
    """Joint softmax attention over 4-D sources; `backward` gives the gradient of each argument."""

    def __init__(
        self, query: Tensor, sources: list[Source | None], *, scale: float, is_causal: bool = False, precision: type
    ) -> None:
        self.precision = precision
        self.scale = precision(scale)
        self.sources = sources
        self.q = array(query, precision)
        present = [s for s in sources if s is not None]
        self.k = np.concatenate([array(s.key, precision) for s in present], axis=2)
        self.v = np.concatenate([array(s.value, precision) for s in present], axis=2)
        self.ends = np.cumsum([0] + [0 if s is None else s.key.shape[2] for s in sources])

        score = self.scale * self.q @ self.k.swapaxes(2, 3)
        seen = np.ones(score.shape, bool)
        for i, source in enumerate(sources):
            if source is None:
                continue
            columns = slice(self.ends[i], self.ends[i + 1])
            if source.lengths is not None:
                within = np.arange(source.key.shape[2]) < source.lengths.numpy()[:, None]
                seen[..., columns] &= within[:, None, None]
            for term in (source.mask, source.bias):
                if term is None:
                    continue
                value = array(term, precision)
                if term.dtype == torch.bool:
                    seen[..., columns] &= value
                else:
                    seen[..., columns] &= value != -np.inf
                    score[..., columns] += value
        if is_causal:
            seen &= np.arange(score.shape[3]) <= np.arange(score.shape[2])[:, None]

        score = np.where(seen, score, -np.inf)
        top = score.max(axis=3, keepdims=True, initial=-np.inf)
        top = np.where(top == -np.inf, 0, top)
        exponentials = np.exp(score - top)
        total = exponentials.sum(axis=3, keepdims=True)
        dead = total == 0
        self.weights = exponentials / np.where(dead, 1, total)
        self.out = self.weights @ self.v
        self.lse = np.where(dead, -np.inf, top + np.log(np.where(dead, 1, total)))[..., 0]
        self.mass = np.stack(
            [self.weights[..., a:b].sum(axis=3) for a, b in zip(self.ends[:-1], self.ends[1:], strict=True)], axis=3
        )

        # What rounding is in proportion to: sums over absolute values; a relative error of the sum within lse is an
        # absolute one of lse.
        self.magnitudes = {
            "out": self.weights @ np.abs(self.v),
            "lse": 1 + np.abs(np.where(dead[..., 0], 0, self.lse)),
            "mass": self.mass,
        }

    def backward(self, dout: Tensor | None, dlse: Tensor | None, dmass: Tensor | None) -> "ExactGradients":
        zero = np.zeros_like(self.out)
        g = zero if dout is None else array(dout, self.precision)
        dweights = g @ self.v.swapaxes(2, 3)
        size = np.abs(g) @ np.abs(self.v).swapaxes(2, 3)
        if dmass is not None:
            per_key = np.repeat(array(dmass, self.precision), np.diff(self.ends), axis=3)
            dweights, size = dweights + per_key, size + np.abs(per_key)
        delta = (self.weights * dweights).sum(axis=3, keepdims=True)
        dscore = self.weights * (dweights - delta)
        size = self.weights * (size + (self.weights * size).sum(axis=3, keepdims=True))
        if dlse is not None:
            per_row = array(dlse, self.precision)[..., None]
            dscore, size = dscore + self.weights * per_row, size + self.weights * np.abs(per_row)
        return ExactGradients(self, dscore, g, abs(size))


class ExactGradients:
    """The gradient of each argument, and its magnitude: the same sums over absolute values. Rounding is in proportion
    to the latter, however much cancels."""

    def __init__(self, forward: ExactFusion, dscore: Array, dout: Array, size: Array) -> None:
        q, k, scale = forward.q, forward.k, forward.scale
        self.query = scale * dscore @ k
        self.query_magnitude = abs(scale) * size @ np.abs(k)
        dk, dk_magnitude = scale * dscore.swapaxes(2, 3) @ q, abs(scale) * size.swapaxes(2, 3) @ np.abs(q)
        dv, dv_magnitude = forward.weights.swapaxes(2, 3) @ dout, forward.weights.swapaxes(2, 3) @ np.abs(dout)
        self.sources: list[dict[str, Array]] = []
        self.magnitudes: list[dict[str, Array]] = []
        for i, source in enumerate(forward.sources):
            at = slice(forward.ends[i], forward.ends[i + 1])
            gradients = {"key": dk[:, :, at], "value": dv[:, :, at]}
            magnitudes = {"key": dk_magnitude[:, :, at], "value": dv_magnitude[:, :, at]}
            for name in ("mask", "bias"):
                term = None if source is None else getattr(source, name)
                if term is not None and term.dtype != torch.bool:
                    gradients[name] = reduced(dscore[..., at], tuple(term.shape))
                    magnitudes[name] = reduced(size[..., at], tuple(term.shape))
            self.sources.append(gradients)
            self.magnitudes.append(magnitudes)


class ExactWeightedSum:
    """y = W X over the keys that take part, 4-D."""

    def __init__(
        self, weights: Tensor, values: Tensor, lengths: Tensor | None, mask: Tensor | None, *, precision: type
    ) -> None:
        self.precision = precision
        self.values = array(values, precision)
        self.taking_part = np.ones(weights.shape, bool)
        if lengths is not None:
            within = np.arange(weights.shape[3]) < lengths.numpy()[:, None]
            self.taking_part &= within[:, None, None]
        if mask is not None:
            self.taking_part &= mask.numpy()
        self.weights = np.where(self.taking_part, array(weights, precision), 0)
        self.out = self.weights @ self.values

    def backward(self, dout: Tensor) -> dict[str, Array]:
        g = array(dout, self.precision)
        return {
            "weights": np.where(self.taking_part, g @ self.values.swapaxes(2, 3), 0),
            "values": self.weights.swapaxes(2, 3) @ g,
        }
