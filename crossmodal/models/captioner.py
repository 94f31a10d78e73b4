"""Text about samples, symbol by symbol: a small autoregressive decoder over all modalities."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from crossmodal._validate import check_count, check_counts
from crossmodal.blocks.common_block import CommonBlock
from crossmodal.blocks.operators import Implementation, Switchable, operators_of
from crossmodal.data.sample import Question
from crossmodal.encoders.output import EncoderOutput
from crossmodal.models.modalities import channels_by_modality
from crossmodal.models.positions import Positions
from crossmodal.models.questions import Questions
from crossmodal.models.symbols import check_symbols
from crossmodal.models.transcriber import encode_all
from crossmodal.nn._heads import merge_heads, split_heads

END = 0  # begins and ends every text; symbols are numbered from 1


class CaptionerOutput(NamedTuple):
    """What :class:`Captioner` returns.

    Attributes:
        logits: ``(B, L + 1, symbols + 1)`` of the symbol that follows nothing, the first, ...; 0 ends a text.
        auxiliary: by modality, the logits of its auxiliary question; empty without any.
    """

    logits: Tensor
    auxiliary: Mapping[str, Tensor] = {}


class DecoderBlock(nn.Module):
    """Causal attention over what was said, then over the modalities.

    Args:
        width, num_heads, dropout, implementation: see :class:`CommonBlock`.
    """

    def __init__(
        self, width: int, num_heads: int = 4, *, dropout: float = 0.0, implementation: Implementation = "fused"
    ) -> None:
        super().__init__()
        self.num_heads, self.implementation = num_heads, implementation
        self.norm = nn.LayerNorm(width)
        self.to_query_key_value = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.cross = CommonBlock(width, num_heads, dropout=dropout, implementation=implementation)

    def forward(
        self, said: Tensor, sources: list[EncoderOutput], positions: list[Tensor | None] | None = None
    ) -> Tensor:
        """``(B, L, width)`` to the same; symbol i sees those up to itself, and positions of the sources' keys."""
        query, key, value = (
            split_heads(part, self.num_heads) for part in self.to_query_key_value(self.norm(said)).chunk(3, dim=2)
        )
        attended = operators_of(self.implementation).attention(query, key, value, is_causal=True)
        said = said + self.dropout(self.to_out(merge_heads(attended)))
        out: Tensor = self.cross(said, sources, positions=positions)[0]
        return out


class Captioner(Switchable):
    """Says what it sees and hears.

    Args:
        encoders: by modality, modules that take ``(input, lengths)`` and return an ``EncoderOutput``.
        channels: of the encoders' features, or by modality.
        symbols: how many there are, the one that ends a text not counted.
        longest: symbols of a text at most.
        width, num_heads: of the common space and of attention.
        layers: decoder blocks.
        dropout: of what the blocks add.
        positions: see :class:`crossmodal.models.Positions`; what was said knows its own.
        auxiliary: see :class:`crossmodal.models.Questions`.
        implementation: of the operators, and of the encoders.

    Raises:
        ValueError: when there is no encoder, ``width`` is not a multiple of ``num_heads``, a number is too small, or
            one of ``positions`` has no encoder; for an unknown ``implementation``.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        channels: int | Mapping[str, int],
        symbols: int,
        longest: int = 64,
        width: int = 48,
        num_heads: int = 4,
        layers: int = 2,
        dropout: float = 0.0,
        positions: Mapping[str, float] | None = None,
        auxiliary: Mapping[str, Question] | None = None,
        implementation: Implementation = "fused",
    ) -> None:
        super().__init__()
        check_counts(symbols=symbols, longest=longest, width=width)
        check_count("layers", layers, 0)
        self.longest = longest
        self.positions = Positions(positions, encoders, width)
        sizes = channels_by_modality(encoders, channels)
        self.encoders = nn.ModuleDict(encoders)
        self.to_common = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(sizes[name], width), nn.LayerNorm(width)) for name in encoders}
        )
        self.kinds = nn.ParameterDict({name: nn.Parameter(torch.randn(width)) for name in encoders})
        self.embedding = nn.Embedding(symbols + 1, width)
        self.said_position = nn.Parameter(torch.randn(longest + 1, width))
        self.layers = nn.ModuleList(
            DecoderBlock(width, num_heads, dropout=dropout, implementation=implementation) for _ in range(layers)
        )
        self.auxiliary = Questions(width, auxiliary, encoders)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, symbols + 1))
        self.implementation = implementation  # of the encoders too

    @property
    def modalities(self) -> tuple[str, ...]:
        """In the order of the encoders."""
        return tuple(self.encoders)

    def forward(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor], said: Tensor) -> CaptionerOutput:
        """What follows each of the symbols of ``said``.

        Args:
            inputs, lengths: see :class:`crossmodal.data.Batch`; a modality left out of ``lengths`` is missing.
            said: ``(B, L)`` int64 symbols from 1, at most ``longest``; padding is negative.

        Raises:
            ValueError: for more symbols than ``longest``, one above ``symbols`` (on CPU), no modality at all, an
                unknown one where one is left out, and lengths of an input that is not there.
        """
        if said.shape[1] > self.longest:
            raise ValueError(f"said must hold at most {self.longest} symbols, longest, got {said.shape[1]}")
        check_symbols("said", said, self.embedding.num_embeddings - 1)
        tokens = self._tokens(inputs, lengths)
        logits = self._continue(*self._sources(tokens), said.clamp(min=0))
        return CaptionerOutput(logits, self.auxiliary.answers(tokens, self.encoders))

    def loss(self, output: CaptionerOutput, targets: Tensor) -> Tensor:
        """Cross-entropy of each next symbol, the end too, given the true ones before it; scalar, nats per symbol.

        Args:
            output: of :meth:`forward`, with ``targets`` said.
            targets: ``(B, L)`` int64 symbols from 1; negative numbers are padding.

        Raises:
            ValueError: when ``targets`` are not as many as were said, or one lies above ``symbols`` (on CPU).
        """
        if output.logits.shape[:2] != (targets.shape[0], targets.shape[1] + 1):
            wanted_shape = (output.logits.shape[0], output.logits.shape[1] - 1)
            raise ValueError(
                f"targets must have the shape of what was said, {wanted_shape}, got {tuple(targets.shape)}"
            )
        check_symbols("targets", targets, self.embedding.num_embeddings - 1)
        wanted = torch.cat([targets, targets.new_full((len(targets), 1), -1)], 1)
        ends = (targets > 0).sum(1, keepdim=True)
        wanted = wanted.masked_fill(wanted < 0, -100).scatter(1, ends, END)
        return cross_entropy(output.logits.float().flatten(0, 1), wanted.flatten())

    @torch.no_grad()
    def transcribe(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> list[list[int]]:
        """The likeliest next symbol until the end, by sample; symbols from 1.

        Raises:
            ValueError: as :meth:`forward`.
        """
        sources, positions = self._sources(self._tokens(inputs, lengths))
        batch = len(next(iter(lengths.values())))
        said = torch.zeros(batch, 0, dtype=torch.int64, device=self.said_position.device)
        ended = torch.zeros(batch, dtype=torch.bool, device=self.said_position.device)
        for _ in range(self.longest):
            following = self._continue(sources, positions, said)[:, -1].argmax(1).masked_fill(ended, END)
            ended |= following == END
            if bool(ended.all()):
                break
            said = torch.cat([said, following.unsqueeze(1)], 1)
        return [[symbol for symbol in row if symbol != END] for row in said.tolist()]

    def _continue(self, sources: list[EncoderOutput], positions: list[Tensor | None], said: Tensor) -> Tensor:
        begun = torch.cat([said.new_full((len(said), 1), END), said], 1)
        tokens = self.embedding(begun) + self.said_position[: begun.shape[1]]
        for layer in self.layers:
            tokens = layer(tokens, sources, positions)
        logits: Tensor = self.head(tokens)
        return logits

    def _tokens(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> dict[str, EncoderOutput]:
        tokens = encode_all(self.encoders, self.to_common, inputs, lengths)
        if not tokens:
            raise ValueError("lengths must hold at least one modality, got none")
        return tokens

    def _sources(self, tokens: Mapping[str, EncoderOutput]) -> tuple[list[EncoderOutput], list[Tensor | None]]:
        sources = [one._replace(features=one.features + self.kinds[name]) for name, one in tokens.items()]
        return sources, [self.positions.of(name, one.features) for name, one in tokens.items()]
