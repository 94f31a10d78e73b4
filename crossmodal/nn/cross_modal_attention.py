"""One modality attends over any number of others under one softmax."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crossmodal._validate import check_tensor
from crossmodal.nn._heads import merge_heads, split_heads
from crossmodal.nn.linear import Linear
from crossmodal.ops.fuse import fuse
from crossmodal.types import Source


class CrossModalOutput(NamedTuple):
    """What :class:`CrossModalAttention` and :class:`CrossModalBlock` return.

    Attributes:
        out: ``(batch, seqlen_q, embed_dim)``.
        mass: ``(batch, num_heads, seqlen_q, modalities)``, the share of attention that each modality got, in the order
            of ``modalities``; float32 (float64 for float64), differentiable; None unless asked for.
    """

    out: Tensor
    mass: Tensor | None = None


class CrossModalAttention(nn.Module):
    r"""The tokens of one modality attend over the tokens of all others: projections around :func:`crossmodal.fuse`.

    .. math:: y_i = W^O \sum_m \sum_j w_{imj} W^V_m x_{mj}, \quad
              w_{imj} \propto \exp(\langle W^Q q_i, W^K_m x_{mj} \rangle / \sqrt{d})

    with one softmax over the tokens j of all modalities m. A missing modality takes no part; a query for which all are
    missing gets 0, since the output projection has no bias.

    Args:
        embed_dim: features of query and output; a multiple of ``num_heads``.
        num_heads: attention heads.
        modalities: features of each modality, by name.
        dropout: probability that a weight is dropped in training.
        bias: whether the projections of query, keys and values add a bias.
        device, dtype: of the parameters.

    Raises:
        ValueError: if ``embed_dim`` is no multiple of ``num_heads``, or ``modalities`` is empty.

    Example:
        >>> attend = crossmodal.nn.CrossModalAttention(64, 8, {"image": 768, "audio": 80})
        >>> text, image, audio = torch.randn(2, 16, 64), torch.randn(2, 197, 768), torch.randn(2, 250, 80)
        >>> result = attend(text, {"image": image, "audio": audio}, {"audio": torch.tensor([250, 0])}, return_mass=True)
        >>> result.out.shape, result.mass.shape
        (torch.Size([2, 16, 64]), torch.Size([2, 8, 16, 2]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        modalities: Mapping[str, int],
        *,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}")
        if not modalities:
            raise ValueError("modalities must name at least one modality, got none")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.to_query = Linear(embed_dim, embed_dim, bias=bias, **factory)
        self.to_key_value = nn.ModuleDict(
            {name: Linear(features, 2 * embed_dim, bias=bias, **factory) for name, features in modalities.items()}
        )
        self.to_out = Linear(embed_dim, embed_dim, bias=False, **factory)

    @property
    def modalities(self) -> tuple[str, ...]:
        """In the order of the columns of ``mass``."""
        return tuple(self.to_key_value)

    def forward(
        self,
        query: Tensor,
        sources: Mapping[str, Tensor | None],
        lengths: Mapping[str, Tensor] | None = None,
        masks: Mapping[str, Tensor] | None = None,
        *,
        return_mass: bool = False,
    ) -> CrossModalOutput:
        """Attention of ``query`` over all ``sources``.

        Args:
            query: ``(batch, seqlen_q, embed_dim)``.
            sources: by modality ``(batch, seqlen, features)``; one that is left out, or None, is missing.
                Compiled or distributed, rather give a length of 0: each set of modalities compiles anew, and leaves
                other parameters without a gradient.
            lengths: by modality ``(batch,)`` int32 or int64; tokens at or beyond are hidden, 0 = missing there.
            masks: by modality bool (True = attend) or float (added to the scores), broadcast to
                ``(batch, num_heads, seqlen_q, seqlen)``.
            return_mass: also return the share of attention of each modality.

        Raises:
            ValueError: for a modality of another name, or shapes that do not fit.
        """
        check_tensor("query", query)
        if query.dim() != 3 or query.shape[2] != self.embed_dim:
            raise ValueError(f"query must have shape (batch, seqlen_q, {self.embed_dim}), got {tuple(query.shape)}")
        lengths, masks = lengths or {}, masks or {}
        for argument, given in (("sources", sources), ("lengths", lengths), ("masks", masks)):
            for name in given:
                if name not in self.to_key_value:
                    raise ValueError(f"{argument} may have {', '.join(self.modalities)}, got {name!r}")
        fused = fuse(
            split_heads(self.to_query(query), self.num_heads),
            [self._source(name, sources.get(name), lengths.get(name), masks.get(name)) for name in self.modalities],
            dropout_p=self.dropout if self.training else 0.0,
            return_mass=return_mass,
        )
        return CrossModalOutput(self.to_out(merge_heads(fused.out)), fused.mass)

    def _source(self, name: str, tokens: Tensor | None, lengths: Tensor | None, mask: Tensor | None) -> Source | None:
        if tokens is None:
            return None
        project = self.to_key_value[name]
        if tokens.dim() != 3 or tokens.shape[2] != project.in_features:
            raise ValueError(
                f"sources[{name!r}] must have shape (batch, seqlen, {project.in_features}), got {tuple(tokens.shape)}"
            )
        key, value = project(tokens).chunk(2, dim=-1)
        return Source(split_heads(key, self.num_heads), split_heads(value, self.num_heads), lengths, mask)
