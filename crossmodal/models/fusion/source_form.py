"""The form that the article of origin gives: X = FC(I', T', A'), W = Attention(X), Y = W X."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crossmodal.blocks.common_attention import CommonAttention
from crossmodal.encoders.output import EncoderOutput
from crossmodal.encoders.padding import zero_padding
from crossmodal.models.fusion.base import Biases, Form, Fused, Fusion, first_batch, mean_over_real


class SourceFusion(Fusion):
    """Every token of every modality attends over all tokens of all modalities; Y is the weighted sum of X itself.

    The mean of Y over a modality's tokens, one modality beside the other, is the result.
    """

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        self.out_features = form.modalities * form.width
        self.kinds = nn.Parameter(torch.randn(form.modalities, form.width))
        self.attend = CommonAttention(
            form.width, form.num_heads, project_values=False, implementation=form.implementation
        )

    def forward(self, tokens: Sequence[EncoderOutput | None], biases: Biases, *, return_mass: bool = False) -> Fused:
        some = first_batch(tokens)
        common = self._common(tokens)
        parts, masses = [], []
        attended = self.attend.attend_all(common, common, biases=biases, return_mass=return_mass)
        for one, found in zip(common, attended, strict=True):
            if one is None or found is None:
                parts.append(some.new_zeros(len(some), self.width))
                continue
            fused, mass = found
            parts.append(mean_over_real(fused, one.lengths))
            if mass is not None:
                masses.append(mass)
        features = torch.cat(parts, 1)
        if not return_mass:
            return Fused(features)
        together = torch.cat(masses, 2)
        count = sum(one.lengths for one in common if one is not None)
        assert isinstance(count, Tensor)
        mean = together.sum(2, keepdim=True) / count.clamp(min=1).view(-1, 1, 1, 1)
        return Fused(features, mean)

    def attention(self, tokens: Sequence[EncoderOutput | None], biases: Biases) -> list[Tensor]:
        """One query per modality: the mean over its tokens."""
        common = self._common(tokens)
        rows: list[list[Tensor]] = [[] for _ in common]
        for one in common:
            if one is None:
                continue
            for column, weights in enumerate(self.attend.weights(one.features, common, biases=biases)):
                rows[column].append(mean_over_real(zero_padding(weights, one.lengths), one.lengths))
        return [torch.stack(row, 1) for row in rows]

    def _common(self, tokens: Sequence[EncoderOutput | None]) -> list[EncoderOutput | None]:
        return [
            one and one._replace(features=one.features + kind) for one, kind in zip(tokens, self.kinds, strict=True)
        ]
