"""Forms that pool each modality on its own first: what they lose is any relation between tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crossmodal.blocks.common_pool import CommonPool
from crossmodal.encoders.output import EncoderOutput
from crossmodal.models.fusion.base import Biases, Form, Fused, Fusion, first_batch


class PooledFusion(Fusion):
    """Each modality is pooled by a learned query; what is made of the pooled vectors is up to the form."""

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        self.pools = nn.ModuleList(
            CommonPool(form.width, form.num_heads, implementation=form.implementation) for _ in range(form.modalities)
        )

    def forward(self, tokens: Sequence[EncoderOutput | None], biases: Biases, *, return_mass: bool = False) -> Fused:
        pooled, present = self._pool(tokens)
        features, weights = self.combine(pooled, present, biases)
        return Fused(features, weights[:, None, None] if return_mass and weights is not None else None)

    def over_sets(self, tokens: Sequence[EncoderOutput | None], biases: Biases, sets: Tensor) -> Tensor:
        pooled, present = self._pool(tokens)
        return torch.stack([self.combine(pooled * row.unsqueeze(1), present & row, biases)[0] for row in sets])

    def combine(self, pooled: Tensor, present: Tensor, biases: Biases) -> tuple[Tensor, Tensor | None]:
        """``(B, modalities, width)``, zero where missing, to ``(B, out_features)`` and weights or None.

        Args:
            pooled: ``(B, modalities, width)``.
            present: ``(B, modalities)`` bool.
            biases: see :meth:`Fusion.forward`.
        """
        raise NotImplementedError

    def _pool(self, tokens: Sequence[EncoderOutput | None]) -> tuple[Tensor, Tensor]:
        some = first_batch(tokens)
        absent = some.new_zeros(len(some), self.width)
        pooled = [absent if one is None else pool(*one) for pool, one in zip(self.pools, tokens, strict=True)]
        nobody = torch.zeros(len(some), dtype=torch.bool, device=some.device)
        present = [nobody if one is None else one.lengths > 0 for one in tokens]
        return torch.stack(pooled, 1), torch.stack(present, 1)


class ConcatFusion(PooledFusion):
    """The pooled vectors side by side, and which of them are there: the baseline."""

    weighs = False

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        self.out_features = form.modalities * (form.width + 1)

    def combine(self, pooled: Tensor, present: Tensor, biases: Biases) -> tuple[Tensor, Tensor | None]:
        return torch.cat([pooled.flatten(1), present.to(pooled.dtype)], dim=1), None


class GatedFusion(PooledFusion):
    """``sum_m g_m tanh(W_m p_m)``, g a softmax over what is there (gated multimodal unit, arXiv 1702.01992)."""

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        self.out_features = form.width
        self.to_hidden = nn.ModuleList(nn.Linear(form.width, form.width) for _ in range(form.modalities))
        self.to_gates = nn.Linear(form.modalities * form.width, form.modalities)

    def combine(self, pooled: Tensor, present: Tensor, biases: Biases) -> tuple[Tensor, Tensor | None]:
        scores = self.to_gates(pooled.flatten(1))
        scores = scores + torch.stack([scores.new_zeros(len(scores)) if b is None else b for b in biases], 1)
        # A row without any modality would be NaN under a softmax of -inf; finite, then zeroed.
        lowest = torch.finfo(scores.dtype).min
        gates = scores.masked_fill(~present, lowest).softmax(1) * present
        hidden = torch.stack([layer(pooled[:, m]).tanh() for m, layer in enumerate(self.to_hidden)], 1)
        return (gates.unsqueeze(2) * hidden).sum(1), gates


class LowRankFusion(PooledFusion):
    """``sum_r prod_m W_m^r [p_m, 1]``: the tensor of all products, of low rank (Liu et al., arXiv 1806.00064)."""

    weighs = False

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        self.out_features, self.rank = form.width, form.rank
        self.factors = nn.ModuleList(nn.Linear(form.width, form.rank * form.width) for _ in range(form.modalities))
        self.mix = nn.Parameter(torch.randn(form.rank) / form.rank**0.5)
        for factor in self.factors:
            # The factor of a missing modality is its bias alone: ones leave the product of the others as it is.
            assert isinstance(factor, nn.Linear)
            nn.init.ones_(factor.bias)

    def combine(self, pooled: Tensor, present: Tensor, biases: Biases) -> tuple[Tensor, Tensor | None]:
        product = torch.ones((), dtype=pooled.dtype, device=pooled.device)
        for m, factor in enumerate(self.factors):
            product = product * factor(pooled[:, m]).unflatten(1, (self.rank, -1))
        return torch.einsum("brw,r->bw", product, self.mix), None
