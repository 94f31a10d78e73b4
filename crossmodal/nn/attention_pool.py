"""A sequence of any length to a fixed number of vectors."""

from typing import Any

import torch
from torch import Tensor, nn

from crossmodal._validate import check_tensor
from crossmodal.nn._absorbed import AbsorbedQueries, Projection, are_mere_weights
from crossmodal.nn._heads import merge_heads, split_heads
from crossmodal.nn.linear import Linear
from crossmodal.ops.attention import attention


class AttentionPool(nn.Module):
    """Learned queries attend over the tokens of a sequence (Lee et al., 2019, section 3.2, without its feed-forward).

    A sequence without any token gives 0, since the output projection has no bias. On CPU few queries attend over the
    tokens themselves, and only what they found is projected: the same but for rounding, for a fraction of the work.

    Args:
        embed_dim: features of the output; a multiple of ``num_heads``.
        num_heads: attention heads.
        num_queries: vectors that a sequence is pooled into.
        features: of the tokens, ``embed_dim`` if None.
        bias: whether the projections of keys and values add a bias.
        device, dtype: of the parameters.

    Raises:
        ValueError: if ``embed_dim`` is no multiple of ``num_heads``.

    Example:
        >>> pool = crossmodal.nn.AttentionPool(64, 8, num_queries=4)
        >>> pool(torch.randn(2, 197, 64), torch.tensor([197, 50])).shape
        torch.Size([2, 4, 64])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_queries: int = 1,
        *,
        features: int | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.features = embed_dim if features is None else features
        # In the length that a projected token has: scores then start with a standard deviation of about 1.
        self.queries = nn.Parameter(torch.empty(num_queries, embed_dim, **factory))
        self.reset_parameters()
        self.to_key_value = Linear(self.features, 2 * embed_dim, bias=bias, **factory)
        self.to_out = Linear(embed_dim, embed_dim, bias=False, **factory)

    def reset_parameters(self) -> None:
        """Draws the queries anew; projections have methods of their own."""
        nn.init.normal_(self.queries)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Pools each sequence.

        Args:
            tokens: ``(batch, seqlen, features)``.
            lengths: ``(batch,)`` int32 or int64; tokens at or beyond are hidden.
            mask: bool (True = attend) or float (added to the scores), broadcast to
                ``(batch, num_heads, num_queries, seqlen)``; see :func:`crossmodal.masks.key_padding`.

        Returns:
            ``(batch, num_queries, embed_dim)``.

        Raises:
            ValueError: for shapes that do not fit.
        """
        check_tensor("tokens", tokens)
        if tokens.dim() != 3 or tokens.shape[2] != self.features:
            raise ValueError(f"tokens must have shape (batch, seqlen, {self.features}), got {tuple(tokens.shape)}")
        absorbed = self._absorbed(tokens, mask)
        if absorbed is not None:
            return self.to_out(merge_heads(_attend(absorbed, tokens, lengths, mask)))
        key, value = (split_heads(t, self.num_heads) for t in self.to_key_value(tokens).chunk(2, dim=-1))
        query = split_heads(self.queries.to(key.dtype).expand(tokens.shape[0], -1, -1), self.num_heads)
        pooled = attention(query, key, value, mask, key_lengths=lengths)
        assert isinstance(pooled, Tensor)
        return self.to_out(merge_heads(pooled))

    def _absorbed(self, tokens: Tensor, mask: Tensor | None) -> AbsorbedQueries | None:
        """What attends over these tokens unprojected; None where they are projected."""
        if not are_mere_weights(self.to_key_value) or not (mask is None or _is_of_keys(mask, tokens)):
            return None
        key, value = self.to_key_value.weight.chunk(2)
        bias = self.to_key_value.bias
        value_bias = None if bias is None else bias.chunk(2)[1]
        absorbed = AbsorbedQueries(self.queries, self.num_heads, Projection(key, None), Projection(value, value_bias))
        return absorbed if absorbed.pay(tokens) else None


def _attend(absorbed: AbsorbedQueries, tokens: Tensor, lengths: Tensor | None, mask: Tensor | None) -> Tensor:
    """``(batch, num_heads, num_queries, head_dim)``."""
    query, rows = absorbed.query(len(tokens)), tokens.unsqueeze(1)
    if lengths is None and mask is None:
        everywhere = attention(query, rows, rows, scale=absorbed.scale)
        assert isinstance(everywhere, Tensor)
        return absorbed.project(everywhere)
    pooled, lse = attention(query, rows, rows, mask, key_lengths=lengths, scale=absorbed.scale, return_lse=True)
    return absorbed.project(pooled, absorbed.by_head(lse) > -torch.inf)


def _is_of_keys(mask: Tensor, tokens: Tensor) -> bool:
    """Whether it is the same for all heads and queries, and fits."""
    batch, length, _ = tokens.shape
    return isinstance(mask, Tensor) and mask.shape in ((batch, 1, 1, length), (1, 1, 1, length))
