"""A layer that brings other modalities into a stream of tokens."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crossmodal.nn.cross_modal_attention import CrossModalAttention, CrossModalOutput
from crossmodal.nn.linear import Linear


class CrossModalBlock(nn.Module):
    r"""Gated cross-modal attention and a feed-forward network, each on normalised input and added to what came.

    .. math:: z = x + \tanh(a) \, \mathrm{Attention}(\mathrm{LN}(x), \{\mathrm{LN}_m(x_m)\}), \quad
              y = z + \tanh(b) \, \mathrm{FFN}(\mathrm{LN}(z))

    (Alayrac et al., 2022, section 2.2.) The gates a and b start at 0: put between the layers of a trained model, the
    block changes nothing until it has learned to.

    Args:
        embed_dim: features of query and output; a multiple of ``num_heads``.
        num_heads: attention heads.
        modalities: features of each modality, by name.
        hidden_dim: width of the feed-forward network, ``4 * embed_dim`` if None.
        dropout: probability that a weight, or a feature of the feed-forward network, is dropped in training.
        gate: what both gates start at.
        device, dtype: of the parameters.

    Example:
        >>> block = crossmodal.nn.CrossModalBlock(64, 8, {"image": 768})
        >>> text, image = torch.randn(2, 16, 64), torch.randn(2, 197, 768)
        >>> torch.equal(block(text, {"image": image}).out, text)
        True
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        modalities: Mapping[str, int],
        *,
        hidden_dim: int | None = None,
        dropout: float = 0.0,
        gate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden_dim = 4 * embed_dim if hidden_dim is None else hidden_dim
        self.attention = CrossModalAttention(embed_dim, num_heads, modalities, dropout=dropout, **factory)
        self.query_norm = nn.LayerNorm(embed_dim, **factory)
        self.source_norms = nn.ModuleDict(
            {name: nn.LayerNorm(features, **factory) for name, features in modalities.items()}
        )
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(embed_dim, **factory),
            Linear(embed_dim, hidden_dim, **factory),
            nn.GELU(),
            nn.Dropout(dropout),
            Linear(hidden_dim, embed_dim, **factory),
        )
        # Of one dimension: FSDP shards no scalars.
        self.gate = gate
        self.attention_gate = nn.Parameter(torch.empty(1, **factory))
        self.feed_forward_gate = nn.Parameter(torch.empty(1, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the gates to what they start at; the parts have methods of their own."""
        for gate in (self.attention_gate, self.feed_forward_gate):
            nn.init.constant_(gate, self.gate)

    def forward(
        self,
        query: Tensor,
        sources: Mapping[str, Tensor | None],
        lengths: Mapping[str, Tensor] | None = None,
        masks: Mapping[str, Tensor] | None = None,
        *,
        return_mass: bool = False,
    ) -> CrossModalOutput:
        """``query`` with what it found in ``sources``; arguments as :meth:`CrossModalAttention.forward`."""
        normed = {
            name: tokens if tokens is None or name not in self.source_norms else self.source_norms[name](tokens)
            for name, tokens in sources.items()
        }
        attended = self.attention(self.query_norm(query), normed, lengths, masks, return_mass=return_mass)
        out = query + self.attention_gate.tanh() * attended.out
        return CrossModalOutput(out + self.feed_forward_gate.tanh() * self.feed_forward(out), attended.mass)
