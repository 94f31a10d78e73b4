"""One embedding per modality in a common space, in which what belongs together is near: for retrieval."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from crossmodal._validate import check_counts
from crossmodal.blocks.common_pool import CommonPool
from crossmodal.blocks.operators import Implementation, Switchable
from crossmodal.models.codebook import OwnStatistics, SharedCodebook
from crossmodal.models.modalities import channels_by_modality, check_given
from crossmodal.nn import ModalityDiscriminator

_LARGEST_SCALE = math.log(100.0)  # CLIP's bound: beyond it a batch's loss is decided by its hardest pair


class Embeddings(NamedTuple):
    """What :class:`TwoTower` returns.

    Attributes:
        vectors: by modality ``(B, width)``, of length 1; with codes at most 1.
        present: by modality ``(B,)`` bool; the vectors of samples without the modality mean nothing.
    """

    vectors: dict[str, Tensor]
    present: dict[str, Tensor]


class TwoTower(Switchable):
    """A tower per modality, two or more: encoder, common space, pooling by learned queries, projection, length 1.

    Args:
        encoders: by modality, modules that take ``(input, lengths)`` and return an ``EncoderOutput``.
        channels: of the encoders' features, or by modality.
        width: of the embeddings; a multiple of ``num_heads``.
        num_heads, num_queries: of the pooling.
        adversary: ``"discriminator"`` or ``"critic"``: carry one that makes the modalities' embeddings look alike in
            training; see :mod:`crossmodal.models.adversary`.
        codes, code_groups: of a codebook that all modalities share and that their embeddings are put together of, after
            batch normalisation of each modality by itself (:class:`crossmodal.models.SharedCodebook`); 0 codes: none,
            embeddings are any vectors of length 1.
        implementation: of the operators, and of the encoders.

    Attributes:
        log_scale, shift: what the losses make of cosines; see :mod:`crossmodal.models.contrastive`.

    Raises:
        ValueError: when there is no encoder; when ``width`` is not a multiple of ``num_heads``, or, with codes, of
            ``code_groups``; for an unknown ``adversary`` or ``implementation``.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        channels: int | Mapping[str, int],
        width: int = 48,
        num_heads: int = 4,
        num_queries: int = 1,
        adversary: str = "none",
        codes: int = 0,
        code_groups: int = 8,
        implementation: Implementation = "fused",
    ) -> None:
        super().__init__()
        check_counts(width=width)
        sizes = channels_by_modality(encoders, channels)
        self.encoders = nn.ModuleDict(encoders)
        self.to_common = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(sizes[name], width), nn.LayerNorm(width)) for name in encoders}
        )
        self.pools = nn.ModuleDict(
            {name: CommonPool(width, num_heads, num_queries, implementation) for name in encoders}
        )
        self.project = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.LayerNorm(num_queries * width),
                    nn.Linear(num_queries * width, 2 * width),
                    nn.GELU(),
                    nn.Linear(2 * width, width),
                )
                for name in encoders
            }
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.shift = nn.Parameter(torch.tensor(-10.0))
        outputs = {"none": 0, "discriminator": len(encoders), "critic": 1}
        if adversary not in outputs:
            raise ValueError(f"adversary must be one of {', '.join(outputs)}, got {adversary!r}")
        self.adversary = (
            ModalityDiscriminator(width, outputs[adversary], hidden_dim=128, activation=nn.SiLU)
            if outputs[adversary]
            else None
        )
        self.codebook = SharedCodebook(width, groups=code_groups, codes=codes) if codes else None
        self.own_statistics = nn.ModuleDict({name: OwnStatistics(width) for name in encoders} if codes else {})
        self.implementation = implementation  # of the encoders too

    @property
    def modalities(self) -> tuple[str, ...]:
        """In the order of the encoders."""
        return tuple(self.encoders)

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by, at most 100."""
        return self.log_scale.clamp(max=_LARGEST_SCALE).exp()

    def forward(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> Embeddings:
        """Embed a batch; see :class:`crossmodal.data.Batch`. Modalities left out of ``lengths`` are left out.

        Raises:
            ValueError: for an unknown modality where one is left out, and for lengths of an input that is not there.
        """
        check_given(inputs, lengths, self.modalities)
        vectors, present = {}, {}
        for name in self.modalities:
            if name not in lengths:
                continue
            encoded = self.encoders[name](inputs[name], lengths[name])
            pooled = self.pools[name](self.to_common[name](encoded.features), encoded.lengths)
            present[name] = encoded.lengths > 0
            projected = self.project[name](pooled)
            if self.codebook is None:
                vectors[name] = normalize(projected, dim=1)
            else:
                vectors[name] = self.codebook(self.own_statistics[name](projected, present[name]))
        return Embeddings(vectors, present)
