"""One layer of a transformer in which tokens attend over other modalities, or over themselves."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crossmodal.blocks.common_attention import CommonAttention
from crossmodal.blocks.operators import Implementation, Tokens


class CommonBlock(nn.Module):
    """``x += gate * norm(attention(norm(x), sources))``, then ``x += feed_forward(norm(x))``.

    The mean over many tokens that attention begins with is small beside x; the norm behind it (as in NormFormer,
    Shleifer et al., arXiv 2110.09456) lets differences between tokens be seen from the first step. It has no bias:
    sources that are not there add nothing.

    Args:
        width: of all tokens; a multiple of ``num_heads``.
        num_heads: attention heads.
        expansion: hidden units of the feed-forward part, in widths.
        dropout: of what is added to x.
        gate: what attention is multiplied by at first, one learned number per channel; 0 begins as if the sources were
            not there (Alayrac et al., arXiv 2204.14198, multiply by tanh of a number that begins at 0).
        likeness: of its attention, see :class:`CommonAttention`.
        implementation: of the operators.

    Raises:
        ValueError: when ``width`` is not a multiple of ``num_heads``.
    """

    def __init__(
        self,
        width: int,
        num_heads: int = 4,
        *,
        expansion: int = 2,
        dropout: float = 0.0,
        gate: float = 1.0,
        likeness: float = 0.0,
        implementation: Implementation = "fused",
    ) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width)
        self.source_norm = nn.LayerNorm(width)
        self.attention = CommonAttention(width, num_heads, likeness=likeness, implementation=implementation)
        self.attended_norm = nn.LayerNorm(width, bias=False)
        self.gate = nn.Parameter(torch.full((width,), gate))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, expansion * width),
            nn.GELU(),
            nn.Linear(expansion * width, width),
            nn.Dropout(dropout),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Tensor,
        sources: Sequence[Tokens | None],
        *,
        biases: Sequence[Tensor | None] | None = None,
        query_position: Tensor | None = None,
        positions: Sequence[Tensor | None] | None = None,
        return_mass: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """``(B, Lq, width)`` over the sources to ``(B, Lq, width)`` and the mass or None.

        Arguments as those of :class:`CommonAttention`.
        """
        attended, mass = self.attention(
            self.query_norm(tokens),
            self._normed(sources),
            biases=biases,
            query_position=query_position,
            positions=positions,
            return_mass=return_mass,
        )
        tokens = tokens + self.dropout(self.gate * self.attended_norm(attended))
        return tokens + self.feed_forward(tokens), mass

    def weights(
        self, tokens: Tensor, sources: Sequence[Tokens | None], *, biases: Sequence[Tensor | None] | None = None
    ) -> list[Tensor]:
        """By source ``(B, Lq, L)``: what this block attends to."""
        return self.attention.weights(self.query_norm(tokens), self._normed(sources), biases=biases)

    def _normed(self, sources: Sequence[Tokens | None]) -> list[Tokens | None]:
        return [source and (self.source_norm(source[0]), source[1]) for source in sources]
