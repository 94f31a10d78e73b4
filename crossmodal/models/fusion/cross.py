"""Each modality asks the others: cross-attention with one query modality after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crossmodal.blocks.common_block import CommonBlock
from crossmodal.blocks.common_pool import CommonPool
from crossmodal.encoders.output import EncoderOutput
from crossmodal.encoders.padding import zero_padding
from crossmodal.models.fusion.base import Biases, Form, Fused, Fusion, first_batch, mean_over_real


class CrossFusion(Fusion):
    """The tokens of each modality attend over those of all others, and are then pooled; the pools side by side.

    Where the others are missing a modality keeps its own tokens. With several layers, each layer's answers are the
    next one's sources.
    """

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        self.out_features = form.modalities * form.width
        self.layers = nn.ModuleList(
            nn.ModuleList(
                CommonBlock(form.width, form.num_heads, likeness=form.likeness, implementation=form.implementation)
                for _ in range(form.modalities)
            )
            for _ in range(form.layers)
        )
        if form.modalities == 1:
            self._ask_nobody()
        self.pools = nn.ModuleList(
            CommonPool(form.width, form.num_heads, implementation=form.implementation) for _ in range(form.modalities)
        )

    def forward(self, tokens: Sequence[EncoderOutput | None], biases: Biases, *, return_mass: bool = False) -> Fused:
        some = first_batch(tokens)
        answers, masses = self._run(tokens, biases, return_mass=return_mass)[-1]
        parts = [
            some.new_zeros(len(some), self.width) if one is None else pool(*one)
            for pool, one in zip(self.pools, answers, strict=True)
        ]
        return Fused(torch.cat(parts, 1), torch.stack(masses, 2) if return_mass else None)

    def attention(self, tokens: Sequence[EncoderOutput | None], biases: Biases) -> list[Tensor]:
        """One query per modality: the mean over its tokens, in the last layer."""
        states = [list(tokens), *(answers for answers, _ in self._run(tokens, biases, return_mass=False))]
        given = states[-2]
        blocks = self.layers[-1]
        assert isinstance(blocks, nn.ModuleList)
        rows: list[list[Tensor]] = [[] for _ in tokens]
        for m, (one, block) in enumerate(zip(given, blocks, strict=True)):
            if one is None:
                continue
            assert isinstance(block, CommonBlock)
            weights = block.weights(one.features, _without(given, m), biases=biases)
            for column, (source, weight) in enumerate(zip(given, weights, strict=True)):
                size = 0 if source is None else source.features.shape[1]
                if weight.shape[2] != size:  # its own tokens, which it does not look at
                    weight = weight.new_zeros(*weight.shape[:2], size)
                rows[column].append(mean_over_real(zero_padding(weight, one.lengths), one.lengths))
        return [torch.stack(row, 1) for row in rows]

    def _ask_nobody(self) -> None:
        """What keys and values are made of can learn nothing; several processes would wait for its gradients."""
        for block in self.modules():
            if isinstance(block, CommonBlock):
                for part in (block.source_norm, block.attention.to_key, block.attention.to_value):
                    part.requires_grad_(False)

    def _run(
        self, tokens: Sequence[EncoderOutput | None], biases: Biases, *, return_mass: bool
    ) -> list[tuple[list[EncoderOutput | None], list[Tensor]]]:
        """By layer, the answers and the masses ``(B, num_heads, modalities)``, mean over the tokens of each
        modality."""
        states = []
        current = list(tokens)
        for blocks in self.layers:
            assert isinstance(blocks, nn.ModuleList)
            answers: list[EncoderOutput | None] = []
            masses: list[Tensor] = []
            for m, (one, block) in enumerate(zip(current, blocks, strict=True)):
                if one is None:
                    answers.append(None)
                    continue
                out, mass = block(one.features, _without(current, m), biases=biases, return_mass=return_mass)
                answers.append(one._replace(features=out))
                if mass is not None:
                    masses.append(mean_over_real(zero_padding(mass.transpose(1, 2), one.lengths), one.lengths))
            states.append((answers, masses))
            current = answers
        return states


def _without(tokens: Sequence[EncoderOutput | None], column: int) -> list[EncoderOutput | None]:
    return [None if index == column else one for index, one in enumerate(tokens)]
