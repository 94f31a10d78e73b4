"""Symbols from speech, with other modalities as second sources."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from crossmodal._validate import check_count, check_counts
from crossmodal.blocks.common_block import CommonBlock
from crossmodal.blocks.operators import Implementation, Switchable
from crossmodal.data.sample import Question
from crossmodal.encoders.output import EncoderOutput
from crossmodal.encoders.padding import zero_padding
from crossmodal.models.ctc import ctc_loss, greedy_decode
from crossmodal.models.modalities import channels_by_modality, check_given
from crossmodal.models.positions import Positions
from crossmodal.models.questions import Questions


class TranscriberOutput(NamedTuple):
    """What :class:`Transcriber` returns.

    Attributes:
        logits: ``(B, L, symbols + 1)``, 0 the blank of CTC.
        lengths: ``(B,)`` of the tokens.
        auxiliary: by modality, the logits of its auxiliary question; empty without any.
    """

    logits: Tensor
    lengths: Tensor
    auxiliary: Mapping[str, Tensor] = {}


class Transcriber(Switchable):
    """The tokens of one modality attend over themselves and those of all others, and spell what was said by CTC.

    Args:
        encoders: by modality, modules that take ``(input, lengths)`` and return an ``EncoderOutput``.
        channels: of the encoders' features, or by modality.
        symbols: how many there are, the blank not counted.
        speech: the modality that is spelt token by token.
        width, num_heads: of the common space and of attention.
        layers: blocks.
        positions: see :class:`crossmodal.models.Positions`.
        auxiliary: see :class:`crossmodal.models.Questions`.
        implementation: of the operators, and of the encoders.

    Raises:
        ValueError: when ``speech`` or one of ``positions`` has no encoder, that of ``speech`` makes one token of all,
            ``width`` is not a multiple of ``num_heads``, or a number is too small; for an unknown ``implementation``.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        channels: int | Mapping[str, int],
        symbols: int,
        speech: str = "audio",
        width: int = 48,
        num_heads: int = 4,
        layers: int = 1,
        positions: Mapping[str, float] | None = None,
        auxiliary: Mapping[str, Question] | None = None,
        implementation: Implementation = "fused",
    ) -> None:
        super().__init__()
        check_counts(symbols=symbols, width=width)
        check_count("layers", layers, 0)
        sizes = channels_by_modality(encoders, channels)
        if speech not in encoders:
            raise ValueError(f"speech must be one of {', '.join(encoders)}, got {speech!r}")
        if getattr(encoders[speech], "summary", False):
            raise ValueError(f"summary must be False for the encoder of {speech}: CTC needs a token per symbol")
        self.speech = speech
        self.encoders = nn.ModuleDict(encoders)
        self.to_common = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(sizes[name], width), nn.LayerNorm(width)) for name in encoders}
        )
        self.positions = Positions(positions, encoders, width)
        self.layers = nn.ModuleList(CommonBlock(width, num_heads, implementation=implementation) for _ in range(layers))
        self.auxiliary = Questions(width, auxiliary, encoders)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, symbols + 1))
        self.implementation = implementation  # of the encoders too

    @property
    def modalities(self) -> tuple[str, ...]:
        """In the order of the encoders."""
        return tuple(self.encoders)

    def forward(
        self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor], said: Tensor | None = None
    ) -> TranscriberOutput:
        """Logits of every token.

        Args:
            inputs, lengths: see :class:`crossmodal.data.Batch`; other modalities than speech may be left out of
                ``lengths``, and are missing.
            said: not used: given the tokens, CTC takes the symbols to be independent. A :class:`Captioner` needs it.

        Raises:
            ValueError: without speech, for an unknown modality where one is left out, and for lengths of an input that
                is not there.
        """
        tokens = encode_all(self.encoders, self.to_common, inputs, lengths)
        if self.speech not in tokens:
            raise ValueError(f"lengths must hold {self.speech}, which is spelt, got {', '.join(tokens) or 'none'}")
        spoken = tokens[self.speech]
        others = [name for name in tokens if name != self.speech]
        positions = [self.positions.of(name, tokens[name].features) for name in (self.speech, *others)]
        features = spoken.features
        for layer in self.layers:
            sources = [spoken._replace(features=features), *(tokens[name] for name in others)]
            features, _ = layer(features, sources, query_position=positions[0], positions=positions)
        answers = self.auxiliary.answers(tokens, self.encoders)
        return TranscriberOutput(self.head(features), spoken.lengths, answers)

    def loss(self, output: TranscriberOutput, targets: Tensor) -> Tensor:
        """:func:`ctc_loss` of what :meth:`forward` returned; scalar, nats per symbol."""
        return ctc_loss(output.logits, output.lengths, targets)

    @torch.no_grad()
    def transcribe(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> list[list[int]]:
        """Symbols from 1, by sample."""
        output = self(inputs, lengths)
        return greedy_decode(output.logits, output.lengths)


def encode_all(
    encoders: nn.ModuleDict, to_common: nn.ModuleDict, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]
) -> dict[str, EncoderOutput]:
    """By modality that is there, tokens in the common space; padding is zero.

    Raises:
        ValueError: for an unknown modality where one is left out, and for lengths of an input that is not there.
    """
    check_given(inputs, lengths, tuple(encoders))
    tokens = {}
    for name in encoders:
        if name in lengths:
            encoded: EncoderOutput = encoders[name](inputs[name], lengths[name])
            features = zero_padding(to_common[name](encoded.features), encoded.lengths)
            tokens[name] = EncoderOutput(features, encoded.lengths)
    return tokens
