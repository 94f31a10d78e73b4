"""Text to tokens: an embedding of each word and an LSTM."""

from torch import Tensor, nn

from crossmodal.encoders.bidirectional import Bidirectional
from crossmodal.encoders.output import EncoderOutput
from crossmodal.encoders.padding import is_real


class TextEncoder(nn.Module):
    """Word numbers to one token per word.

    Args:
        vocabulary: how many word numbers there are; 0 is padding.
        channels: of the features; even.
    """

    def __init__(self, vocabulary: int, channels: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, channels, padding_idx=0)
        self.recurrent = Bidirectional("lstm", channels, channels)

    def forward(self, words: Tensor, lengths: Tensor) -> EncoderOutput:
        """``(B, L)`` int64 and ``(B,)`` in words; features ``(B, L, channels)``."""
        words = words.where(is_real(lengths, words.shape[1]), 0)
        return EncoderOutput(self.recurrent(self.embedding(words), lengths), lengths)
