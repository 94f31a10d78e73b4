"""Packed attention: each sequence a fusion of its own."""

from itertools import pairwise

import numpy as np
from torch import Tensor

from crossmodal import Source
from tests.exact.arrays import Exact
from tests.exact.fusion import ExactFusion


class ExactVarlen:
    """Tensors (total, num_heads, width); rows beyond the last sequence give out 0, lse -inf and have no gradient."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        *,
        precision: type,
        **options: object,
    ) -> None:
        self.precision, self.has_sink = precision, options.get("sink") is not None
        self.shapes = {"query": query.shape, "key": key.shape, "value": value.shape}
        starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
        self.rows_q = [slice(a, b) for a, b in pairwise(starts_q)]
        self.rows_k = [slice(a, b) for a, b in pairwise(starts_k)]
        self.sequences = [
            ExactFusion(
                _one(query[at_q]),
                [Source(_one(key[at_k]), _one(value[at_k]))],
                precision=precision,
                first_sample=b,
                **options,
            )
            for b, (at_q, at_k) in enumerate(zip(self.rows_q, self.rows_k, strict=True))
        ]
        total, num_heads, _ = query.shape
        outs = [s.results["out"] for s in self.sequences]
        lse = Exact(np.full((num_heads, total), -np.inf, precision), np.ones((num_heads, total), precision))
        for at, sequence in zip(self.rows_q, self.sequences, strict=True):
            for whole, part in zip(lse, sequence.results["lse"], strict=True):
                whole[:, at] = part[0]
        self.results = {"out": self._packed(outs, self.rows_q, (total, num_heads, value.shape[2])), "lse": lse}

    def backward(self, dout: Tensor | None = None, dlse: Tensor | None = None) -> dict[str, Exact]:
        found = [
            s.backward(None if dout is None else _one(dout[at]), None if dlse is None else dlse[None, :, at])
            for s, at in zip(self.sequences, self.rows_q, strict=True)
        ]
        gradients = {"query": self._packed([f["query"] for f in found], self.rows_q, self.shapes["query"])}
        for name in ("key", "value"):
            parts = [f[f"sources[0].{name}"] for f in found]
            gradients[name] = self._packed(parts, self.rows_k, self.shapes[name])
        if self.has_sink:
            zero = np.zeros(self.shapes["query"][1], self.precision)
            sinks = [f["sink"] for f in found]
            gradients["sink"] = Exact(sum((s.value for s in sinks), zero), sum((s.magnitude for s in sinks), zero))
        return gradients

    def _packed(self, parts: list[Exact], rows: list[slice], shape: tuple[int, ...]) -> Exact:
        packed = Exact(np.zeros(shape, self.precision), np.zeros(shape, self.precision))
        for part, at in zip(parts, rows, strict=True):
            for whole, piece in zip(packed, part, strict=True):
                whole[at] = piece[0].swapaxes(0, 1)
        return packed


def _one(rows: Tensor) -> Tensor:
    """(length, num_heads, width) as a batch of one."""
    return rows.transpose(0, 1)[None]
