"""Text to tokens: an embedding of each word and a recurrent network, or a transformer."""

import torch
from torch import Tensor, nn

from crossmodal._validate import check_count, check_counts, values_are_readable
from crossmodal.blocks.common_block import CommonBlock
from crossmodal.encoders.bidirectional import Bidirectional, Kind, check_channels, last_states
from crossmodal.encoders.lengths import check_sequences
from crossmodal.encoders.output import EncoderOutput
from crossmodal.encoders.padding import is_real


class TextEncoder(nn.Module):
    """Word numbers to one token per word, by a bidirectional LSTM or GRU.

    Args:
        vocabulary: how many word numbers there are; 0 is padding.
        channels: of the features; even.
        kind: ``"lstm"`` or ``"gru"``.
        summary: one token, of what both directions know at their ends, in the place of all.

    Raises:
        ValueError: for another ``kind``, and for ``channels`` that are odd or not positive.
    """

    def __init__(self, vocabulary: int, channels: int = 48, kind: Kind = "lstm", summary: bool = False) -> None:
        super().__init__()
        check_counts(vocabulary=vocabulary)
        check_channels(channels)
        self.embedding = nn.Embedding(vocabulary, channels, padding_idx=0)
        self.recurrent = Bidirectional(kind, channels, channels)
        self.summary = summary

    def forward(self, words: Tensor, lengths: Tensor) -> EncoderOutput:
        """``(B, L)`` int64 and ``(B,)`` in words; features ``(B, L, channels)``, or one token.

        Raises ValueError for a number that no word has (on CPU).
        """
        check_sequences("words", words, lengths)
        read = self.recurrent(_embed(self.embedding, words, lengths), lengths)
        if self.summary and read.shape[1]:
            return EncoderOutput(last_states(read, lengths), lengths.clamp(max=1))
        return EncoderOutput(read, lengths)


class TransformerTextEncoder(nn.Module):
    """Word numbers to one token per word, by pre-norm transformer layers on :func:`crossmodal.fuse`.

    Args:
        vocabulary: how many word numbers there are; 0 is padding.
        channels: of the features; a multiple of ``num_heads``.
        layers, num_heads, dropout: of the transformer.
        longest: texts are cut after this many words, for each of which a position is learned.

    Raises:
        ValueError: when ``channels`` is not a multiple of ``num_heads``, or a number is too small.
    """

    def __init__(
        self,
        vocabulary: int,
        channels: int = 48,
        *,
        layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.0,
        longest: int = 512,
    ) -> None:
        super().__init__()
        check_counts(vocabulary=vocabulary, channels=channels, longest=longest)
        check_count("layers", layers, 0)
        self.embedding = nn.Embedding(vocabulary, channels, padding_idx=0)
        self.position = nn.Parameter(torch.randn(longest, channels))
        self.layers = nn.ModuleList(CommonBlock(channels, num_heads, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)

    def forward(self, words: Tensor, lengths: Tensor) -> EncoderOutput:
        """``(B, L)`` int64 and ``(B,)`` in words; features ``(B, min(L, longest), channels)``.

        Raises ValueError for a number that no word has (on CPU).
        """
        words, lengths = words[:, : len(self.position)], lengths.clamp(max=len(self.position))
        check_sequences("words", words, lengths)
        tokens = _embed(self.embedding, words, lengths) + self.position[: words.shape[1]]
        for layer in self.layers:
            tokens, _ = layer(tokens, [(tokens, lengths)])
        return EncoderOutput(self.norm(tokens), lengths)


def _embed(embedding: nn.Embedding, words: Tensor, lengths: Tensor) -> Tensor:
    real = words.where(is_real(lengths, words.shape[1]), 0)
    if real.numel() and values_are_readable(real):
        least, most = map(int, torch.aminmax(real))
        if least < 0 or most >= embedding.num_embeddings:
            raise ValueError(
                f"words must lie in [0, {embedding.num_embeddings}), the vocabulary, got {least if least < 0 else most}"
            )
    embedded: Tensor = embedding(real)
    return embedded
