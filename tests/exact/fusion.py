"""Joint softmax attention, all its arguments, and the gradient of each."""

import numpy as np
from torch import Tensor

from crossmodal import Source
from tests.exact.arrays import Array, Exact, array, reduced, repeated_heads, summed_heads, within
from tests.exact.philox import kept
from tests.exact.scores import added, visible


class ExactFusion:
    """Attention over 4-D sources; `results` and `backward` name their entries as problems name their tensors."""

    def __init__(
        self,
        query: Tensor,
        sources: list[Source | None],
        *,
        scale: float,
        precision: type,
        is_causal: bool = False,
        causal_align: str = "upper_left",
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        sink: Tensor | None = None,
        query_lengths: Tensor | None = None,
        dropout_p: float = 0.0,
        dropout_seed: int = 0,
        first_sample: int = 0,  # of the dropout mask
    ) -> None:
        self.precision = precision
        self.scale = precision(scale)
        self.sources = sources
        batch, num_heads, seqlen_q, head_dim = query.shape
        self.alive = within(query_lengths, batch, seqlen_q)[:, None, :, None]
        self.q = np.where(self.alive, array(query, precision), 0)
        self.ends = np.cumsum([0] + [0 if s is None else s.key.shape[2] for s in sources])
        present = [s for s in sources if s is not None]
        self.k = self._joined([(s.key, s.lengths) for s in present], head_dim)
        self.v = self._joined([(s.value, s.lengths) for s in present], head_dim)

        seen = np.zeros((batch, num_heads, seqlen_q, 0), bool)
        bias = np.zeros(seen.shape, precision)
        for source in present:
            shape = (batch, num_heads, seqlen_q, source.key.shape[2])
            sight = visible(
                shape,
                source,
                is_causal=is_causal,
                causal_align=causal_align,
                window_size=window_size,
                query_lengths=query_lengths,
            )
            seen = np.concatenate([seen, sight], axis=3)
            bias = np.concatenate([bias, added(shape, source, precision)], axis=3)
        score = self.scale * self.q @ self.k.swapaxes(2, 3)
        self.slope = Exact(np.ones((), precision), np.ones((), precision))  # of the softcap
        if softcap > 0:
            tanh = np.tanh(score / precision(softcap))
            score, self.slope = precision(softcap) * tanh, Exact(1 - tanh**2, 1 + tanh**2)
        self.seen = seen
        self._softmax(np.where(seen, score + bias, -np.inf), sink)

        self.factor = np.ones((), precision)  # of the dropout
        if dropout_p > 0:
            keep = kept(dropout_seed, dropout_p, seen.shape, first_sample)
            self.factor = np.where(keep, 1 / (1 - precision(dropout_p)) if dropout_p < 1 else 0, 0)
        dropped = self.weights * self.factor
        sections = list(zip(self.ends[:-1], self.ends[1:], strict=True))
        shares = [self.weights[..., a:b].sum(axis=3) for a, b in sections]
        self.out = dropped @ self.v
        self.mass = np.stack(shares, axis=3) if shares else np.zeros((*self.lse.shape, 0), precision)
        products = abs(self.scale) * np.abs(self.q) @ np.abs(self.k).swapaxes(2, 3)
        products = (self.weights * products).sum(axis=3)
        deep = self.depth * self.weights
        deep_shares = [deep[..., a:b].sum(axis=3) for a, b in sections]
        self.results = {
            "out": Exact(self.out, (self.depth * dropped) @ np.abs(self.v)),
            # A relative error of the sum within is an absolute one of lse, and so is one of a score, whose products
            # may cancel.
            "lse": Exact(self.lse, 1 + np.abs(np.where(np.isneginf(self.lse), 0, self.lse)) + products),
            "mass": Exact(self.mass, np.stack(deep_shares, axis=3) if shares else self.mass),
        }

    def _joined(self, parts: list[tuple[Tensor, Tensor | None]], width: int) -> Array:
        """Along the keys; what lies beyond a length is not read."""
        batch, num_heads = self.q.shape[:2]
        if not parts:
            return np.zeros((batch, num_heads, 0, width), self.precision)
        rows = []
        for tensor, lengths in parts:
            there = within(lengths, batch, tensor.shape[2])[:, None, :, None]
            rows.append(repeated_heads(np.where(there, array(tensor, self.precision), 0), num_heads))
        return np.concatenate(rows, axis=2)

    def _softmax(self, score: Array, sink: Tensor | None) -> None:
        self.sink = np.full((self.q.shape[1], 1, 1), -np.inf, self.precision)
        self.has_sink = sink is not None
        if sink is not None:
            self.sink = array(sink, self.precision)[:, None, None]
        keys_top = score.max(axis=3, keepdims=True, initial=-np.inf)
        top = np.maximum(keys_top, self.sink)
        top = np.where(top == -np.inf, 0, top)
        exponentials, to_sink = np.exp(score - top), np.exp(self.sink - top)
        total = exponentials.sum(axis=3, keepdims=True) + to_sink
        empty = total == 0
        total = np.where(empty, 1, total)
        self.weights = exponentials / total
        # Queries beyond query_lengths have no softmax, hence no share for a sink either.
        self.sink_weight = np.where(self.alive, to_sink / total, 0)
        self.lse = np.where(empty | ~self.alive, -np.inf, top + np.log(total))[..., 0]
        # exp(x) turns a rounding of x into a relative error of |x| eps: under a sink far above every key, all weights
        # of the row have it, and beside keys far above the sink, the sink's share has.
        here, above = keys_top > -np.inf, self.sink > -np.inf
        gap = np.where(here & above, np.where(above, self.sink, 0) - np.where(here, keys_top, 0), 0)
        # Nor can a weight be nearer than one rounding of its score: half an eps of it, where the rule has four. Beside
        # finfo.min the reference says what is left.
        ordinary = np.abs(score) < 1000
        rounding = np.abs(np.where(ordinary, score, 0)) / 8
        self.depth, self.sink_depth = 1 + np.maximum(gap, 0) + rounding, 1 + np.maximum(-gap, 0)

    def backward(
        self,
        dout: Tensor | None = None,
        dlse: Tensor | None = None,
        dmass: Tensor | None = None,
        dweights: Exact | None = None,  # of the weights themselves, before dropout
    ) -> dict[str, Exact]:
        """The gradient of each argument."""
        existing = self.alive & (self.seen.any(axis=3, keepdims=True))
        g = np.zeros_like(self.out)
        dw, size = np.zeros_like(self.weights), np.zeros_like(self.weights)
        if dout is not None:
            g = np.where(existing, array(dout, self.precision), 0)
            dw = dw + self.factor * (g @ self.v.swapaxes(2, 3))
            size = size + self.factor * (np.abs(g) @ np.abs(self.v).swapaxes(2, 3))
        if dmass is not None:
            per_key = np.repeat(array(dmass, self.precision), np.diff(self.ends), axis=3)
            dw, size = dw + per_key, size + np.abs(per_key)
        if dweights is not None:
            dw, size = dw + dweights.value, size + dweights.magnitude
        deep = self.depth * self.weights
        shared, shared_size = -(self.weights * dw).sum(axis=3, keepdims=True), (deep * size).sum(axis=3, keepdims=True)
        if dlse is not None:
            per_row = array(dlse, self.precision)[..., None]
            shared, shared_size = shared + per_row, shared_size + np.abs(per_row)
        dscore, size = self.weights * (dw + shared), deep * (size + shared_size)

        found: dict[str, Exact] = {}
        if self.has_sink:
            to_sink, sizes = self.sink_weight * shared, self.sink_depth * self.sink_weight * shared_size
            found["sink"] = Exact(to_sink.sum(axis=(0, 2, 3)), sizes.sum(axis=(0, 2, 3)))
        draw = dscore * self.slope.value * self.scale
        draw_size = size * self.slope.magnitude * np.abs(self.scale)
        dropped = self.weights * self.factor
        found["query"] = Exact(draw @ self.k, draw_size @ np.abs(self.k))
        for i, source in enumerate(self.sources):
            if source is None:
                continue
            at = slice(self.ends[i], self.ends[i + 1])
            for name, ds, ds_size, rows in (
                ("key", draw, draw_size, self.q),
                ("value", dropped, self.depth * dropped, g),
            ):
                pair = [
                    summed_heads(weight[..., at].swapaxes(2, 3) @ row, getattr(source, name).shape[1])
                    for weight, row in ((ds, rows), (ds_size, np.abs(rows)))
                ]
                found[f"sources[{i}].{name}"] = Exact(*pair)
            for name in ("mask", "bias"):
                term = getattr(source, name)
                if term is not None and term.is_floating_point():
                    pair = [reduced(terms[..., at], tuple(term.shape)) for terms in (dscore, size)]
                    found[f"sources[{i}].{name}"] = Exact(*pair)
        return found
