"""How operators behave under `torch.func.vmap`: the mapped dimension is folded into the batch, one kernel runs.

Two cases run once per example instead: dropout, whose mask depends on a sample's place in the batch, and packed rows.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from crossmodal import _library  # noqa: F401  registers torch.ops.crossmodal

_OPS = torch.ops.crossmodal


class _Fold:
    """Folds arguments of one call, of `size` examples of `batch` samples each."""

    def __init__(self, size: int, batch: int) -> None:
        self.size, self.batch = size, batch

    def __call__(self, tensor: Tensor | None, dim: int | None) -> Tensor | None:
        """(batch, ...) -> (size * batch, ...), also where the batch is broadcast; None stays."""
        if tensor is None:
            return None
        tensor = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
        rest = tensor.shape[2:]
        return tensor.expand(self.size, self.batch, *rest).reshape(self.size * self.batch, *rest)

    def all(self, tensors: Sequence[Tensor | None], dims: Sequence[int | None]) -> list[Tensor | None]:
        return [self(tensor, dim) for tensor, dim in zip(tensors, dims, strict=True)]

    def rows(self, statistics: Tensor, dim: int | None) -> Tensor:
        """(2, rows of the batch) -> (2, size * rows)."""
        statistics = statistics.unsqueeze(0) if dim is None else statistics.movedim(dim, 0)
        kinds, rows = statistics.shape[1:]
        return statistics.expand(self.size, kinds, rows).movedim(0, 1).reshape(kinds, self.size * rows)

    def undo(self, result: Tensor) -> tuple[Tensor, int | None]:
        """The inverse for a result, with the place of the mapped dimension; what is empty for a reason stays so."""
        if result.shape == (0,):
            return result, None
        return result.unflatten(0, (self.size, self.batch)), 0

    def undo_rows(self, statistics: Tensor) -> tuple[Tensor, int]:
        return statistics.unflatten(1, (self.size, statistics.shape[1] // self.size)), 1

    def undo_gradient(self, gradient: Tensor, shape: Sequence[int]) -> tuple[Tensor, int | None]:
        """The gradient of an argument of which one example has `shape`."""
        gradient, dim = self.undo(gradient)
        if dim is not None and shape[0] != self.batch:  # it was broadcast over the batch
            gradient = gradient.sum(dim=1, keepdim=True)
        return gradient, dim


def _example_shape(tensor: Tensor, dim: int | None) -> list[int]:
    shape = list(tensor.shape)
    if dim is not None:
        del shape[dim]
    return shape


def _unzip(results: Sequence[tuple[Tensor, int | None]]) -> tuple[list[Tensor], list[int | None]]:
    return [result for result, _ in results], [dim for _, dim in results]


def _one_by_one(op: Callable[..., Any]) -> Callable[..., Any]:
    """The rule of an operator that runs once per example."""

    def pick(argument: Any, dim: Any, i: int) -> Any:
        if isinstance(argument, list | tuple) and isinstance(dim, list | tuple):
            return [pick(a, d, i) for a, d in zip(argument, dim, strict=True)]
        return argument if dim is None or argument is None else argument.select(dim, i)

    def rule(info: Any, in_dims: Any, *arguments: Any) -> Any:
        results = [
            op(*(pick(argument, dim, i) for argument, dim in zip(arguments, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return (stacked, [0] * len(stacked)) if isinstance(results[0], list) else (tuple(stacked), (0,) * len(stacked))

    return rule


def _attention_fwd(info: Any, in_dims: Any, query: Tensor, *arguments: Any) -> Any:
    keys, values, lengths, terms, owners, query_lengths, sink, seed, *options = arguments
    if seed is not None:
        return _one_by_one(_OPS.attention_fwd.default)(info, in_dims, query, *arguments)
    fold = _Fold(info.batch_size, _example_shape(query, in_dims[0])[0])
    out, lse, mass, statistics = _OPS.attention_fwd.default(
        fold(query, in_dims[0]),
        fold.all(keys, in_dims[1]),
        fold.all(values, in_dims[2]),
        fold.all(lengths, in_dims[3]),
        fold.all(terms, in_dims[4]),
        owners,
        fold(query_lengths, in_dims[6]),
        fold(sink, in_dims[7]),
        None,
        *options,
    )
    return tuple(zip(*(fold.undo(out), fold.undo(lse), fold.undo(mass), fold.undo_rows(statistics)), strict=True))


def _attention_bwd(info: Any, in_dims: Any, dout: Tensor, dlse: Any, dmass: Any, query: Tensor, *arguments: Any) -> Any:
    keys, values, lengths, terms, owners, query_lengths, sink, seed, out, statistics, mass, *options = arguments
    if seed is not None:
        return _one_by_one(_OPS.attention_bwd.default)(info, in_dims, dout, dlse, dmass, query, *arguments)
    fold = _Fold(info.batch_size, _example_shape(query, in_dims[3])[0])
    gradients = _OPS.attention_bwd.default(
        fold(dout, in_dims[0]),
        fold(dlse, in_dims[1]),
        fold(dmass, in_dims[2]),
        fold(query, in_dims[3]),
        fold.all(keys, in_dims[4]),
        fold.all(values, in_dims[5]),
        fold.all(lengths, in_dims[6]),
        fold.all(terms, in_dims[7]),
        owners,
        fold(query_lengths, in_dims[9]),
        fold(sink, in_dims[10]),
        None,
        fold(out, in_dims[12]),
        fold.rows(statistics, in_dims[13]),
        mass if mass.dim() == 1 else fold(mass, in_dims[14]),
        *options,
    )
    inputs = [query, *keys, *values, *terms, *([] if sink is None else [sink])]
    dims = [in_dims[3], *in_dims[4], *in_dims[5], *in_dims[7], *([] if sink is None else [in_dims[10]])]
    return _unzip(
        [fold.undo_gradient(g, _example_shape(t, d)) for g, t, d in zip(gradients, inputs, dims, strict=True)]
    )


def _attention_plain_bwd(info: Any, in_dims: Any, dout: Tensor, *arguments: Any) -> Any:
    query, key, value, out, statistics, *options = arguments
    fold = _Fold(info.batch_size, _example_shape(query, in_dims[1])[0])
    gradients = _OPS.attention_plain_bwd.default(
        *fold.all([dout, query, key, value, out], in_dims[:5]), fold.rows(statistics, in_dims[5]), *options
    )
    return tuple(zip(*map(fold.undo, gradients), strict=True))


def _attention_double_bwd(info: Any, in_dims: Any, ddquery: Any, *arguments: Any) -> Any:
    ddkeys, ddvalues, ddterms, ddsink, dout, dlse, dmass, query, keys, values, lengths, terms, *rest = arguments
    owners, query_lengths, sink, seed, statistics, *options = rest
    if seed is not None:
        return _one_by_one(_OPS.attention_double_bwd.default)(info, in_dims, ddquery, *arguments)
    fold = _Fold(info.batch_size, _example_shape(query, in_dims[8])[0])
    gradients = _OPS.attention_double_bwd.default(
        fold(ddquery, in_dims[0]),
        fold.all(ddkeys, in_dims[1]),
        fold.all(ddvalues, in_dims[2]),
        fold.all(ddterms, in_dims[3]),
        fold(ddsink, in_dims[4]),
        fold(dout, in_dims[5]),
        fold(dlse, in_dims[6]),
        fold(dmass, in_dims[7]),
        fold(query, in_dims[8]),
        fold.all(keys, in_dims[9]),
        fold.all(values, in_dims[10]),
        fold.all(lengths, in_dims[11]),
        fold.all(terms, in_dims[12]),
        owners,
        fold(query_lengths, in_dims[14]),
        fold(sink, in_dims[15]),
        None,
        fold.rows(statistics, in_dims[17]),
        *options,
    )
    # A term or a sink that samples share got a gradient that is theirs, and what flows back to it was spread likewise.
    inputs = [dout, dlse, dmass, query, *keys, *values, *terms, *([] if sink is None else [sink])]
    dims = [*in_dims[5:9], *in_dims[9], *in_dims[10], *in_dims[12], *([] if sink is None else [in_dims[15]])]
    return _unzip(
        [
            fold.undo(g) if t is None else fold.undo_gradient(g, _example_shape(t, d))
            for g, t, d in zip(gradients, inputs, dims, strict=True)
        ]
    )


def _associate_fwd(info: Any, in_dims: Any, query: Tensor, *arguments: Any) -> Any:
    keys, lengths, terms, owners, query_lengths, sink, *options = arguments
    fold = _Fold(info.batch_size, _example_shape(query, in_dims[0])[0])
    weights, indices, statistics = _OPS.associate_fwd.default(
        fold(query, in_dims[0]),
        fold.all(keys, in_dims[1]),
        fold.all(lengths, in_dims[2]),
        fold.all(terms, in_dims[3]),
        owners,
        fold(query_lengths, in_dims[5]),
        fold(sink, in_dims[6]),
        *options,
    )
    return tuple(zip(*(fold.undo(weights), fold.undo(indices), fold.undo_rows(statistics)), strict=True))


def _associate_bwd(info: Any, in_dims: Any, dweights: Tensor, query: Tensor, *arguments: Any) -> Any:
    keys, lengths, terms, owners, query_lengths, sink, indices, statistics, *options = arguments
    fold = _Fold(info.batch_size, _example_shape(query, in_dims[1])[0])
    gradients = _OPS.associate_bwd.default(
        fold(dweights, in_dims[0]),
        fold(query, in_dims[1]),
        fold.all(keys, in_dims[2]),
        fold.all(lengths, in_dims[3]),
        fold.all(terms, in_dims[4]),
        owners,
        fold(query_lengths, in_dims[6]),
        fold(sink, in_dims[7]),
        indices if indices.dim() == 1 else fold(indices, in_dims[8]),
        fold.rows(statistics, in_dims[9]),
        *options,
    )
    inputs = [query, *keys, *terms, *([] if sink is None else [sink])]
    dims = [in_dims[1], *in_dims[2], *in_dims[4], *([] if sink is None else [in_dims[7]])]
    return _unzip(
        [fold.undo_gradient(g, _example_shape(t, d)) for g, t, d in zip(gradients, inputs, dims, strict=True)]
    )


def _weighted_sum_fwd(info: Any, in_dims: Any, weights: Tensor, *arguments: Any) -> Any:
    fold = _Fold(info.batch_size, _example_shape(weights, in_dims[0])[0])
    return fold.undo(_OPS.weighted_sum_fwd.default(*fold.all([weights, *arguments], in_dims)))


def _weighted_sum_bwd(info: Any, in_dims: Any, dout: Tensor, *arguments: Any) -> Any:
    *tensors, wants_dweights, wants_dvalues = arguments
    fold = _Fold(info.batch_size, _example_shape(dout, in_dims[0])[0])
    gradients = _OPS.weighted_sum_bwd.default(*fold.all([dout, *tensors], in_dims[:5]), wants_dweights, wants_dvalues)
    return tuple(zip(*map(fold.undo, gradients), strict=True))


def _softmax_weighted_sum_fwd(info: Any, in_dims: Any, scores: Tensor, *arguments: Any) -> Any:
    *tensors, scale, for_backward = arguments
    fold = _Fold(info.batch_size, _example_shape(scores, in_dims[0])[0])
    out, statistics = _OPS.softmax_weighted_sum_fwd.default(
        *fold.all([scores, *tensors], in_dims[:4]), scale, for_backward
    )
    return tuple(zip(*(fold.undo(out), fold.undo_rows(statistics)), strict=True))


def _softmax_weighted_sum_bwd(info: Any, in_dims: Any, dout: Tensor, *arguments: Any) -> Any:
    scores, values, lengths, mask, out, statistics, *options = arguments
    fold = _Fold(info.batch_size, _example_shape(dout, in_dims[0])[0])
    gradients = _OPS.softmax_weighted_sum_bwd.default(
        *fold.all([dout, scores, values, lengths, mask, out], in_dims[:6]),
        fold.rows(statistics, in_dims[6]),
        *options,
    )
    return tuple(zip(*map(fold.undo, gradients), strict=True))


for _name, _rule in {
    "attention_fwd": _attention_fwd,
    "attention_bwd": _attention_bwd,
    "attention_plain_bwd": _attention_plain_bwd,
    "attention_double_bwd": _attention_double_bwd,
    "attention_varlen_fwd": _one_by_one(_OPS.attention_varlen_fwd.default),
    "attention_varlen_bwd": _one_by_one(_OPS.attention_varlen_bwd.default),
    "attention_varlen_double_bwd": _one_by_one(_OPS.attention_varlen_double_bwd.default),
    "associate_fwd": _associate_fwd,
    "associate_bwd": _associate_bwd,
    "weighted_sum_fwd": _weighted_sum_fwd,
    "weighted_sum_bwd": _weighted_sum_bwd,
    "softmax_weighted_sum_fwd": _softmax_weighted_sum_fwd,
    "softmax_weighted_sum_bwd": _softmax_weighted_sum_bwd,
}.items():
    torch.library.register_vmap(f"crossmodal::{_name}", cast(Any, _rule))
