"""Sound to tokens: log-mel frames, convolutions over time, a GRU."""

from torch import Tensor, nn

from crossmodal._validate import check_counts
from crossmodal.encoders.bidirectional import Bidirectional, check_channels, last_states
from crossmodal.encoders.convolution import ConvOverTime
from crossmodal.encoders.log_mel import LogMel
from crossmodal.encoders.output import EncoderOutput
from crossmodal.encoders.padding import is_real, zero_padding
from crossmodal.encoders.spec_augment import SpecAugment
from crossmodal.encoders.voice_warp import VoiceWarp


class AudioEncoder(nn.Module):
    """Waveform to one token per ``2 * hop`` samples.

    Args:
        sample_rate: Hz.
        channels: of the features; even.
        log_mel: the front end; None takes :class:`LogMel` with its defaults.

    Raises:
        ValueError: for ``channels`` that are odd or not positive, and a front end of another sample rate.
    """

    def __init__(self, sample_rate: int, channels: int = 48, log_mel: LogMel | None = None) -> None:
        super().__init__()
        check_channels(channels)
        self.log_mel = _front_end(sample_rate, log_mel)
        self.subsample = ConvOverTime(self.log_mel.bands, channels, 5, stride=2, padding=2)
        self.recurrent = Bidirectional("gru", channels, channels)

    def forward(self, waveform: Tensor, lengths: Tensor) -> EncoderOutput:
        """``(B, samples)`` of floats and ``(B,)`` in samples; features ``(B, frames / 2, channels)``."""
        mel, frames = self.log_mel(waveform, lengths)
        mel = standardize(mel, frames).to(self.subsample.weight.dtype)
        tokens = nn.functional.gelu(self.subsample(mel))
        token_lengths = (frames + 1) // 2
        return EncoderOutput(self.recurrent(tokens, token_lengths), token_lengths)


class CrnnEncoder(nn.Module):
    """Waveform to one token per ``2 * hop`` samples: SpecAugment, three convolutions over time, a bidirectional GRU.

    Args:
        sample_rate: Hz.
        channels: of the features; even.
        hidden: channels of the convolutions.
        log_mel: the front end; None takes :class:`LogMel` with its defaults.
        augment: what is hidden in training; None hides nothing.
        voices: how voices are changed in training; None leaves them alone.
        dropout: before the GRU.
        summary: one token, of what both directions of the GRU know at their ends, in the place of all.

    Raises:
        ValueError: for ``channels`` that are odd, a number that is not positive, or a front end of another rate.
    """

    def __init__(
        self,
        sample_rate: int,
        channels: int = 96,
        *,
        hidden: int = 96,
        log_mel: LogMel | None = None,
        augment: SpecAugment | None = None,
        voices: VoiceWarp | None = None,
        dropout: float = 0.1,
        summary: bool = False,
    ) -> None:
        super().__init__()
        check_counts(hidden=hidden)
        check_channels(channels)
        self.log_mel = _front_end(sample_rate, log_mel)
        self.augment = augment or nn.Identity()
        self.voices = voices
        self.convolutions = nn.ModuleList(
            ConvOverTime(inner, hidden, 5, stride=stride, padding=2)
            for inner, stride in ((self.log_mel.bands, 1), (hidden, 2), (hidden, 1))
        )
        # Over channels, not over time: a length, or the padding behind it, must not move a token.
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in self.convolutions)
        self.dropout = nn.Dropout(dropout)
        self.recurrent = Bidirectional("gru", hidden, channels)
        self.summary = summary

    def forward(self, waveform: Tensor, lengths: Tensor) -> EncoderOutput:
        """``(B, samples)`` of floats and ``(B,)`` in samples; features ``(B, frames / 2, channels)``, or one token."""
        mel, frames = self.log_mel(waveform, lengths)
        if self.voices is not None:
            mel, frames = self.voices(mel, frames)
        tokens = self.augment(standardize(mel, frames)).to(self.recurrent.ahead.weight_ih_l0.dtype)
        for layer, norm in zip(self.convolutions, self.norms, strict=True):
            assert isinstance(layer, ConvOverTime)
            found = norm(layer(tokens))
            frames = (frames + 1) // 2 if layer.stride[0] == 2 else frames
            tokens = nn.functional.gelu(found)
            if layer is not self.convolutions[-1]:
                # Zero beyond the length again, or the next convolution would carry padding into the last real token.
                # Multiplied, in half the time of zero_padding: padding is as finite as the real tokens beside it.
                tokens = tokens * is_real(frames, tokens.shape[1]).unsqueeze(2)
        heard = self.recurrent(self.dropout(tokens), frames)
        if self.summary:
            return EncoderOutput(last_states(heard, frames), frames.clamp(max=1))
        return EncoderOutput(heard, frames)


def _front_end(sample_rate: int, log_mel: LogMel | None) -> LogMel:
    if log_mel is None:
        return LogMel(sample_rate)
    if log_mel.sample_rate != sample_rate:
        raise ValueError(f"log_mel must have the sample_rate {sample_rate}, got one of {log_mel.sample_rate}")
    return log_mel


def standardize(mel: Tensor, frames: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the real frames of each sample and band; padding becomes 0.

    Loudness and the colour of the microphone are gone after it.
    """
    mel = zero_padding(mel, frames)
    count = frames.clamp(min=1).view(-1, 1, 1)
    mean = mel.sum(1, keepdim=True) / count
    centred = zero_padding(mel - mean, frames)
    deviation = (centred.square().sum(1, keepdim=True) / count + 1e-4).sqrt()
    return centred / deviation
