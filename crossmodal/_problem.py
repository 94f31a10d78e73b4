"""What a call describes, in one canonical form: four-dimensional, checked, scale resolved.

Operators hand these to kernels, references evaluate them in plain torch; `_arguments` makes them.
"""

from typing import NamedTuple

from torch import Tensor


class KeySource(NamedTuple):
    """One present source in canonical form."""

    key: Tensor  # (batch, num_heads_k, seqlen_k, head_dim)
    value: Tensor  # (batch, num_heads_k, seqlen_k, head_dim_v)
    lengths: Tensor | None  # (batch,)
    terms: tuple[Tensor, ...]  # bool or float, 4-D, each dimension 1 or that of (batch, num_heads, seqlen_q, seqlen_k)
    slot: int  # its place in the caller's list, hence its column in mass


class FusionProblem(NamedTuple):
    """Everything that a kernel or a reference needs; four-dimensional, checked, scale resolved."""

    query: Tensor  # (batch, num_heads, seqlen_q, head_dim)
    sources: tuple[KeySource, ...]
    num_slots: int  # length of the caller's list, absent sources included
    lead_shape: tuple[int, ...]  # leading dimensions that the caller's output has in place of (batch, num_heads)
    scale: float
    is_causal: bool = False
    causal_align: str = "upper_left"
    window_size: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    sink: Tensor | None = None  # (num_heads,)
    query_lengths: Tensor | None = None  # (batch,)
    dropout_p: float = 0.0
    dropout_seed: Tensor | None = None  # one int64

    @property
    def batch(self) -> int:
        return self.query.shape[0]

    @property
    def num_heads(self) -> int:
        return self.query.shape[1]

    @property
    def seqlen_q(self) -> int:
        return self.query.shape[2]

    @property
    def head_dim_v(self) -> int:
        return self.sources[0].value.shape[3] if self.sources else self.query.shape[3]

    def unfold(self, result: Tensor) -> Tensor:
        """Gives ``(batch, num_heads, ...)`` the leading dimensions that the caller came with."""
        if len(self.lead_shape) == 2:
            return result
        return result.reshape(*self.lead_shape, *result.shape[2:])

    def unfold_without_heads(self, result: Tensor) -> Tensor:
        """The same for ``(batch, ...)``, where the heads were averaged away."""
        if len(self.lead_shape) == 2:
            return result
        if len(self.lead_shape) < 2:  # there was no head dimension
            return result.reshape(*self.lead_shape, *result.shape[1:])
        return result.reshape(*self.lead_shape[:-1], *result.shape[1:])


class VarlenProblem(NamedTuple):
    """``attention_varlen`` in canonical form: sequence b has the rows ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``.

    Where nobody could read the offsets they may be anything. Whoever uses them clamps each to [0, total] and to no less
    than the one before it, then each length, the difference of two, to [0, max_seqlen]; rows left over give 0.
    """

    query: Tensor  # (total_q, num_heads, head_dim)
    key: Tensor  # (total_k, num_heads_k, head_dim)
    value: Tensor  # (total_k, num_heads_k, head_dim_v)
    cu_seqlens_q: Tensor  # (batch + 1,) int32
    cu_seqlens_k: Tensor  # (batch + 1,) int32
    max_seqlen_q: int
    max_seqlen_k: int
    scale: float
    is_causal: bool = False
    causal_align: str = "upper_left"
    window_size: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    sink: Tensor | None = None  # (num_heads,)
    dropout_p: float = 0.0
    dropout_seed: Tensor | None = None  # one int64

    @property
    def batch(self) -> int:
        return self.cu_seqlens_q.shape[0] - 1

    @property
    def num_heads(self) -> int:
        return self.query.shape[1]


class WeightedSumProblem(NamedTuple):
    """``weighted_sum`` in canonical form."""

    weights: Tensor  # (batch, num_heads, seqlen_q, seqlen_k)
    values: Tensor  # (batch, num_heads, seqlen_k, head_dim)
    lengths: Tensor | None  # (batch,)
    mask: Tensor | None  # bool, 4-D, each dimension 1 or that of weights
    lead_shape: tuple[int, ...]

    def unfold(self, result: Tensor) -> Tensor:
        return result if len(self.lead_shape) == 2 else result.reshape(*self.lead_shape, *result.shape[2:])


class SoftmaxWeightedSumProblem(NamedTuple):
    """``softmax_weighted_sum`` in canonical form."""

    scores: Tensor  # (batch, num_heads, seqlen_q, seqlen_k)
    values: Tensor  # (batch, num_heads, seqlen_k, head_dim)
    lengths: Tensor | None  # (batch,)
    mask: Tensor | None  # bool, 4-D, each dimension 1 or that of scores
    lead_shape: tuple[int, ...]
    scale: float = 1.0

    def unfold(self, result: Tensor) -> Tensor:
        return result if len(self.lead_shape) == 2 else result.reshape(*self.lead_shape, *result.shape[2:])
