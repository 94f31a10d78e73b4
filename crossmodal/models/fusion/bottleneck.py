"""Modalities meet in a few shared tokens only (Nagrani et al., arXiv 2107.00135)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crossmodal.blocks.common_block import CommonBlock
from crossmodal.encoders.output import EncoderOutput
from crossmodal.models.fusion.base import Biases, Form, Fused, Fusion, first_batch


class BottleneckFusion(Fusion):
    """In every layer the tokens of each modality attend over themselves and the bottleneck, then the bottleneck over
    all.

    Nagrani et al. update the bottleneck once per modality and take the mean; here it attends over all modalities under
    one softmax, so that an uninformative one can be left aside. The bottleneck tokens side by side are the result.
    """

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        self.out_features = form.num_queries * form.width
        self.bottleneck = nn.Parameter(torch.randn(form.num_queries, form.width))

        def block() -> CommonBlock:
            return CommonBlock(form.width, form.num_heads, implementation=form.implementation)

        self.gather = nn.ModuleList(block() for _ in range(form.layers))
        # The last gathering needs no more spreading after it.
        self.spread = nn.ModuleList(
            nn.ModuleList(block() for _ in range(form.modalities)) for _ in range(form.layers - 1)
        )

    def forward(self, tokens: Sequence[EncoderOutput | None], biases: Biases, *, return_mass: bool = False) -> Fused:
        shared = self._start(tokens)
        current = list(tokens)
        mass = None
        for layer, gather in enumerate(self.gather):
            last = layer == len(self.gather) - 1
            shared, mass = gather(shared, current, biases=biases, return_mass=return_mass and last)
            if not last:
                current = self._spread(layer, current, shared)
        return Fused(shared.flatten(1), mass)

    def attention(self, tokens: Sequence[EncoderOutput | None], biases: Biases) -> list[Tensor]:
        shared = self._start(tokens)
        current = list(tokens)
        for layer, gather in enumerate(self.gather[:-1]):
            shared, _ = gather(shared, current, biases=biases)
            current = self._spread(layer, current, shared)
        last = self.gather[-1]
        assert isinstance(last, CommonBlock)
        return last.weights(shared, current, biases=biases)

    def _start(self, tokens: Sequence[EncoderOutput | None]) -> Tensor:
        return self.bottleneck.expand(len(first_batch(tokens)), -1, -1)

    def _spread(self, layer: int, tokens: Sequence[EncoderOutput | None], shared: Tensor) -> list[EncoderOutput | None]:
        blocks = self.spread[layer]
        assert isinstance(blocks, nn.ModuleList)
        whole = torch.full((len(shared),), shared.shape[1], device=shared.device)
        return [
            one and one._replace(features=block(one.features, [one, (shared, whole)])[0])
            for one, block in zip(tokens, blocks, strict=True)
        ]
