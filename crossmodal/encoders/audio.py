"""Sound to tokens: log-mel frames, one convolution over time, a GRU."""

from torch import Tensor, nn

from crossmodal.encoders.bidirectional import Bidirectional
from crossmodal.encoders.log_mel import LogMel
from crossmodal.encoders.output import EncoderOutput
from crossmodal.encoders.padding import zero_padding


class AudioEncoder(nn.Module):
    """Waveform to one token per ``2 * hop`` samples.

    Args:
        sample_rate: Hz.
        channels: of the features; even.
        log_mel: the front end; None takes :class:`LogMel` with its defaults.
    """

    def __init__(self, sample_rate: int, channels: int = 48, log_mel: LogMel | None = None) -> None:
        super().__init__()
        self.log_mel = log_mel or LogMel(sample_rate)
        self.subsample = nn.Conv1d(self.log_mel.bands, channels, 5, stride=2, padding=2)
        self.recurrent = Bidirectional("gru", channels, channels)

    def forward(self, waveform: Tensor, lengths: Tensor) -> EncoderOutput:
        """``(B, samples)`` float32 and ``(B,)`` in samples; features ``(B, frames / 2, channels)``."""
        mel, frames = self.log_mel(waveform, lengths)
        mel = _standardize(mel, frames)
        tokens = nn.functional.gelu(self.subsample(mel.transpose(1, 2))).transpose(1, 2)
        token_lengths = (frames + 1) // 2
        return EncoderOutput(self.recurrent(tokens, token_lengths), token_lengths)


def _standardize(mel: Tensor, frames: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the real frames of each sample and band; padding becomes 0.

    Loudness and the colour of the microphone are gone after it.
    """
    mel = zero_padding(mel, frames)
    count = frames.clamp(min=1).view(-1, 1, 1)
    mean = mel.sum(1, keepdim=True) / count
    centred = zero_padding(mel - mean, frames)
    deviation = (centred.square().sum(1, keepdim=True) / count + 1e-4).sqrt()
    return centred / deviation
