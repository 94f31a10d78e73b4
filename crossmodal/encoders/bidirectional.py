"""A recurrent network that reads padded sequences from both ends."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from crossmodal._validate import check_count
from crossmodal.blocks.operators import Implementation
from crossmodal.encoders.gru_steps import read_both_ways, runs_in_steps
from crossmodal.encoders.padding import reverse_real
from crossmodal.nn._products import has_instructions

Kind = Literal["lstm", "gru"]


class Bidirectional(nn.Module):
    """An LSTM or GRU forward and another one backward over the real tokens only.

    Forward, padding comes last and cannot reach a real token; backward, each sample is turned round by its
    own length first. The result for real tokens equals that of packed sequences, without their copy of
    the lengths to the host, and with length 0 allowed.

    Where gradients are wanted on CPU, GRUs run in steps of our own, which round otherwise than torch's; see
    :mod:`crossmodal.encoders.gru_steps`. The implementation ``"reference"`` leaves them to torch everywhere.

    Under autocast to a dtype that this CPU has no instructions for, it reads in float32: torch's LSTM fails there.

    Args:
        kind: ``"lstm"`` or ``"gru"``.
        in_features: channels of the input.
        out_features: channels of the output, half of them from each direction; even.

    Raises:
        ValueError: for another ``kind``, or an odd ``out_features``.
    """

    def __init__(self, kind: Kind, in_features: int, out_features: int) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        if out_features % 2:
            raise ValueError(f"out_features must be even, got {out_features}")
        recurrent = nn.LSTM if kind == "lstm" else nn.GRU
        self.ahead = recurrent(in_features, out_features // 2, batch_first=True)
        self.back = recurrent(in_features, out_features // 2, batch_first=True)
        self.implementation: Implementation = "fused"

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """``(B, L, in_features)`` and ``(B,)`` to ``(B, L, out_features)``; padding must be finite."""
        if values.shape[1] == 0:  # torch's recurrent layers refuse it
            return values.new_zeros(values.shape[0], 0, 2 * self.ahead.hidden_size)
        if values.is_cpu and torch.is_autocast_enabled("cpu") and not has_instructions(torch.get_autocast_dtype("cpu")):
            with torch.autocast("cpu", enabled=False):
                return self._read(values.float(), lengths)
        return self._read(values, lengths)

    def _read(self, values: Tensor, lengths: Tensor) -> Tensor:
        if self.implementation == "fused" and runs_in_steps(values, self.ahead, self.back):
            return read_both_ways(values, lengths, self.ahead, self.back)
        ahead, _ = self.ahead(values)
        back, _ = self.back(reverse_real(values, lengths))
        return torch.cat([ahead, reverse_real(back, lengths)], dim=2)


def check_channels(channels: int) -> None:
    """Raises ValueError unless two directions can share them."""
    check_count("channels", channels)
    if channels % 2:
        raise ValueError(f"channels must be even, got {channels}")


def last_states(values: Tensor, lengths: Tensor) -> Tensor:
    """What both directions of :class:`Bidirectional` know at their ends: ``(B, L, C)`` to one token, ``(B, 1, C)``."""
    ahead, back = values.chunk(2, dim=2)
    last = (lengths - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, ahead.shape[2])
    return torch.cat([ahead.gather(1, last), back[:, :1]], dim=2)
