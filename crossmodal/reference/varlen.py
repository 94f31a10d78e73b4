"""Plain-torch twin of :func:`crossmodal.attention_varlen`."""

from typing import NamedTuple

import torch
from torch import Tensor

from crossmodal._arguments import varlen_problem
from crossmodal._problem import FusionProblem, KeySource, VarlenProblem
from crossmodal.reference.fuse import run_reference as run_padded


def attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    causal_align: str = "upper_left",
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    sink: Tensor | None = None,
    return_lse: bool = False,
    dropout_seed: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """See :func:`crossmodal.attention_varlen`; memory grows with batch x max_seqlen_q x max_seqlen_k."""
    problem = varlen_problem(
        query,
        key,
        value,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        is_causal,
        scale,
        enable_gqa,
        causal_align,
        window_size,
        softcap,
        sink,
        dropout_seed,
    )
    out, lse = run_reference(problem)
    return (out, lse) if return_lse else out


def run_reference(problem: VarlenProblem) -> tuple[Tensor, Tensor]:
    """Evaluates a checked problem: pads the sequences, runs the padded reference, packs what it gives."""
    queries = Sequences.of(problem.cu_seqlens_q, problem.max_seqlen_q, problem.query.shape[0])
    keys = Sequences.of(problem.cu_seqlens_k, problem.max_seqlen_k, problem.key.shape[0])
    result = run_padded(
        FusionProblem(
            query=queries.pad(problem.query),
            sources=(KeySource(keys.pad(problem.key), keys.pad(problem.value), keys.lengths, (), 0),),
            num_slots=1,
            lead_shape=(problem.batch, problem.num_heads),
            scale=problem.scale,
            is_causal=problem.is_causal,
            causal_align=problem.causal_align,
            window_size=problem.window_size,
            softcap=problem.softcap,
            sink=problem.sink,
            query_lengths=queries.lengths,
            dropout_p=problem.dropout_p,
            dropout_seed=problem.dropout_seed,
        ),
        return_lse=True,
        return_mass=False,
    )
    assert result.lse is not None
    out = queries.pack(result.out, 0.0)
    lse = queries.pack(result.lse.unsqueeze(-1), float("-inf"))
    return out, lse.squeeze(-1).transpose(0, 1)


class Sequences(NamedTuple):
    """Where the rows of packed sequences lie, as index arithmetic on tensors: no value is read by Python."""

    starts: Tensor  # (batch + 1,) int64, where each sequence starts, and where the last one ends
    lengths: Tensor  # (batch,) int64
    width: int  # rows that a padded sequence has
    total: int  # rows that there are

    @staticmethod
    def of(cu_seqlens: Tensor, max_seqlen: int, total: int) -> "Sequences":
        starts = cu_seqlens.long().clamp(0, total).cummax(0).values
        return Sequences(starts, starts.diff().clamp_max(max_seqlen), min(max_seqlen, total), total)

    def pad(self, packed: Tensor) -> Tensor:
        """(total, num_heads, d) -> (batch, num_heads, width, d); rows beyond a length hold any row of ``packed``."""
        row = self.starts[:-1, None] + torch.arange(self.width, device=packed.device)
        # index_select rather than packed[row]: it also takes no index from no rows.
        rows = packed.index_select(0, row.clamp_max(self.total - 1).flatten())
        return rows.reshape(*row.shape, *packed.shape[1:]).transpose(1, 2)

    def pack(self, result: Tensor, nothing: float) -> Tensor:
        """(batch, num_heads, width, d) -> (total, num_heads, d); rows of no sequence hold ``nothing``."""
        batch, num_heads, width, d = result.shape
        row = torch.arange(self.total, device=result.device)
        sequence = torch.searchsorted(self.starts, row, right=True) - 1  # -1: before all of them
        position = row - self.starts[sequence.clamp_min(0)]
        # The end of the last sequence starts one of length 0, to which all rows after it belong.
        length = torch.nn.functional.pad(self.lengths, (0, 1))[sequence.clamp_min(0)]
        there = (position >= 0) & (position < length)
        # One row more than there are, which stands for nothing: what flows back into it is ignored.
        rows = result.transpose(1, 2).reshape(batch * width, num_heads, d)
        rows = torch.cat([rows, rows.new_full((1, num_heads, d), nothing)])
        return rows.index_select(0, torch.where(there, sequence * width + position, batch * width))
