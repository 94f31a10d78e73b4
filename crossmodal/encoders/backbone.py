"""Pretrained networks of other libraries as encoders."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from crossmodal._extras import require
from crossmodal.encoders.equal_lengths import by_length, in_equal_lengths
from crossmodal.encoders.lengths import check_sequences, check_there
from crossmodal.encoders.output import EncoderOutput
from crossmodal.encoders.padding import is_real, zero_padding
from crossmodal.encoders.preparation import Normalization, preparation_of, saved_normalization, timm_normalization

Kind = Literal["image", "text", "audio"]


# What libraries call learned positions.
_POSITIONS = ("position_embeddings", "position_embedding", "embed_positions", "wpe")

# Networks of sound whose tokens are not made of padding, but for what a norm over time makes of it.
_KEEP_PADDING_APART = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")
_SECOND = 16_000  # values, at the sampling rate of most pretrained models of sound


class HuggingFaceEncoder(nn.Module):
    """A model of ``transformers`` whose answer has ``last_hidden_state``: BERT, ViT, Wav2Vec2 and the like, and of one
    with several towers, such as CLIP, that of the kind.

    Weights that the features do not depend on, such as those of a pooler or of the token that masks, are kept as they
    are: DistributedDataParallel waits for the gradient of every weight that learns.

    Args:
        model: the model, or a name or folder that ``transformers.AutoModel`` knows.
        kind: what it reads. Images go in as ``pixel_values``, text as ``input_ids`` with a mask, audio as
            ``input_values`` with a mask. Text beyond the positions that the model has is cut off. What a feature
            extractor does before (normalising, resizing) is the caller's part, but for ``normalize``.
        frozen: the weights are kept as they are, in evaluation mode.
        normalize: images in [0, 1], and sounds: True as the settings say that are saved with the model, which has to be
            a name or a folder; nothing is done where they say nothing. ``{"mean": [...], "deviation": [...]}``, by
            channel, for images, and ``"unit_variance"`` for sounds, ask no file.
        size: of the images, channels first; None: what the model's configuration says.

    Attributes:
        channels: of its features.

    Raises:
        MissingExtraError: when transformers is needed and not installed.
        ValueError: for another ``kind``, a model of several towers of which none is of the kind, one that cannot read
            the kind or images of the ``size``, and for ``normalize`` that the kind does not have, or True with a model
            that is no name.
    """

    def __init__(
        self,
        model: nn.Module | str,
        kind: Kind,
        *,
        frozen: bool = False,
        normalize: Normalization = False,
        size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        if normalize is True:
            if not isinstance(model, str):
                raise ValueError("normalize must not be True for a model that is no name or folder: nothing says how")
            normalize = saved_normalization(model, kind)
        self.prepare = preparation_of(normalize, kind)
        if isinstance(model, str):
            library = require("transformers", distribution="transformers", extra="backbones")
            model = library.AutoModel.from_pretrained(model)
        network = _tower(model, kind)
        self.model, self.kind, self.frozen = network, kind, frozen
        self._positions = _positions_of(network) if kind == "text" else None
        network.requires_grad_(not frozen)
        example = self._example(size)
        if example is not None:
            self.channels = _try_out(self, example)
        elif hasattr(network.config, "hidden_size"):
            self.channels = int(network.config.hidden_size)
        else:
            raise ValueError(f"size must be given: {type(network).__name__} says neither image_size nor hidden_size")

    def train(self, mode: bool = True) -> "HuggingFaceEncoder":
        """A frozen model stays in evaluation mode: dropout would only blur it."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def forward(self, values: Tensor, lengths: Tensor) -> EncoderOutput:
        """The input of its kind and ``(B,)``, see :class:`crossmodal.data.Batch`; features ``(B, L, channels)``.

        A sound that is shorter than what a token is made of goes on in silence, and has one token. What it answers does
        not depend on the others beside it.
        """
        if self.kind == "image":
            there = check_there(values, lengths)
            pixels = _blanked(self.prepare, values, there)
            features = _as_tokens(self.model(pixel_values=pixels).last_hidden_state)
            return EncoderOutput(features, there * features.shape[1])
        check_sequences("values", values, lengths)
        if self._positions is not None:
            values, lengths = values[:, : self._positions], lengths.clamp(max=self._positions)
        if self.prepare is not None:
            values = self.prepare(values, lengths)
        short = max(0, self._values_for(self._fewest_tokens()) - values.shape[1])
        values = pad(zero_padding(values, lengths), (0, short))
        # A row without any token would be NaN under a mask that hides all; it gets one, which is hidden after.
        read = lengths.clamp(min=self._values_for(1))
        if self._mixes_padding_in() and len(read):
            # Rows that are missing are read with the longest: they need no group of their own.
            longest = read.max()
            read = read.where(lengths > 0, longest)
            values = values[:, : max(int(longest), self._values_for(self._fewest_tokens()))]
            features = by_length(self._read, values, read, least=self._values_for(self._fewest_tokens()))
        else:
            features = self._read(values, read)
        if features.shape[1] == values.shape[1]:
            return EncoderOutput(features, lengths)
        shorter = getattr(self.model, "_get_feat_extract_output_lengths", None)
        # Where the model does not say, evenly subsampled, as far as anyone can tell.
        tokens = -(-read * features.shape[1] // values.shape[1]) if shorter is None else shorter(read).to(lengths.dtype)
        return EncoderOutput(features, tokens.clamp(max=features.shape[1]) * (lengths > 0))

    def _read(self, values: Tensor, lengths: Tensor) -> Tensor:
        name = "input_ids" if self.kind == "text" else "input_values"
        seen = is_real(lengths, values.shape[1])
        with self._unpadded(lengths, values.shape[1]):
            features: Tensor = self.model(**{name: values}, attention_mask=seen.long()).last_hidden_state
        return features

    def _mixes_padding_in(self) -> bool:
        """Whether tokens of a sound may be made of padding: convolutions of Data2VecAudio and conformers run over it,
        SEW and adapters make one token of several."""
        if self.kind != "audio":
            return False
        config = self.model.config
        return config.model_type not in _KEEP_PADDING_APART or bool(getattr(config, "add_adapter", False))

    def _unpadded(self, lengths: Tensor, longest: int) -> AbstractContextManager[None]:
        """Within it, a norm over all values of a sound takes in no padding."""
        config = self.model.config
        if self.kind != "audio" or getattr(config, "feat_extract_norm", None) != "group":
            return nullcontext()
        steps = longest
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            steps = (steps - kernel) // stride + 1
        return in_equal_lengths(self.model.feature_extractor, lengths, steps)

    def _example(self, size: Sequence[int] | None) -> Tensor | None:
        """One input, as small as can be where no size is given; None where nothing tells the size of images."""
        if self.kind == "text":
            return torch.zeros(1, 1, dtype=torch.int64)
        if self.kind == "audio":
            return torch.zeros(1, self._values_for(1) if hasattr(self.model.config, "conv_kernel") else _SECOND)
        if size is None:
            side = getattr(self.model.config, "image_size", None)
            if side is None:
                return None
            size = (getattr(self.model.config, "num_channels", 3), *((side, side) if isinstance(side, int) else side))
        return torch.zeros(1, *size)

    def _values_for(self, tokens: int) -> int:
        """How many values the network has to read to give so many tokens."""
        config = self.model.config
        if self.kind != "audio" or not hasattr(config, "conv_kernel"):
            return tokens
        values = tokens * getattr(config, "squeeze_factor", 1)  # SEW attends to so many taken together
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            values = (values - 1) * stride + kernel
        return values

    def _fewest_tokens(self) -> int:
        """In training, transformers hides stretches of a sound's tokens, and refuses fewer than one stretch."""
        config = self.model.config
        hides = self.kind == "audio" and self.model.training and getattr(config, "apply_spec_augment", False)
        return max(1, config.mask_time_length) if hides and config.mask_time_prob > 0 else 1


class TimmEncoder(nn.Module):
    """An image model of ``timm``, or any module with its ``forward_features`` and ``num_features``.

    Args:
        model: the model, or a name that ``timm.create_model`` knows; timm needs a torchvision that fits torch.
        size: of the images, channels first. Where it is known, weights that the features do not depend on, such as
            those of a head, are kept as they are: DistributedDataParallel waits for the gradient of every weight that
            learns.
        pretrained: download its weights, for a name.
        frozen: the weights are kept as they are, in evaluation mode.
        normalize: images in [0, 1]: True as the model's ``pretrained_cfg`` says; nothing is done where it says nothing.
            ``{"mean": [...], "deviation": [...]}``, by channel, asks no one.

    Attributes:
        channels: of its features.

    Raises:
        MissingExtraError: when timm is needed and cannot be imported.
        ValueError: for ``normalize`` that is none of these, or of another number of channels than ``size``.
    """

    def __init__(
        self,
        model: nn.Module | str,
        *,
        size: Sequence[int] | None = None,
        pretrained: bool = True,
        frozen: bool = False,
        normalize: Normalization = False,
    ) -> None:
        super().__init__()
        if isinstance(model, str):
            library = require("timm", distribution="timm", extra="backbones")
            model = library.create_model(model, pretrained=pretrained)
        network: Any = model
        self.model, self.frozen = network, frozen
        if normalize is True:
            normalize = timm_normalization(getattr(network, "pretrained_cfg", {}))
        self.prepare = preparation_of(normalize, "image")
        self.channels = int(network.num_features)
        network.requires_grad_(not frozen)
        if size is not None:
            _try_out(self, torch.zeros(1, *size))

    def train(self, mode: bool = True) -> "TimmEncoder":
        """A frozen model stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def forward(self, pixels: Tensor, lengths: Tensor) -> EncoderOutput:
        """``(B, channels, height, width)`` and ``(B,)``, 1 = there; a feature map becomes tokens row by row."""
        there = check_there(pixels, lengths)
        features = self.model.forward_features(_blanked(self.prepare, pixels, there))
        features = _as_tokens(features, last=getattr(self.model, "output_fmt", "NCHW") == "NHWC")
        return EncoderOutput(features, there * features.shape[1])


def _tower(model: Any, kind: Kind) -> Any:
    """The model, or that of its parts that reads this kind.

    Raises:
        ValueError: when it has several, and none for it.
    """
    if hasattr(model.config, "hidden_size") or hasattr(model.config, "hidden_sizes"):
        return model
    name = {"image": "vision_model", "text": "text_model", "audio": "audio_model"}[kind]
    parts = {part: module for part, module in model.named_children() if part.endswith("_model")}
    if not parts:
        return model
    if name not in parts:
        raise ValueError(
            f"model must have a part {name} to read {kind}, got {type(model).__name__} of {', '.join(parts)}"
        )
    return parts[name]


def _positions_of(network: nn.Module) -> int | None:
    """How many tokens it can tell apart by learned positions; None for any number."""
    for name, part in network.named_modules():
        if isinstance(part, nn.Embedding) and name.rpartition(".")[2] in _POSITIONS:
            # RoBERTa's begin after the one of padding, OPT has two more than it says.
            usable = part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
            config: Any = network.config
            return min(usable, getattr(config, "max_position_embeddings", usable))
    return None


def _blanked(prepare: nn.Module | None, pixels: Tensor, there: Tensor) -> Tensor:
    """Prepared images, zero where there is none."""
    prepared: Tensor = pixels if prepare is None else prepare(pixels, there)
    return zero_padding(prepared.unsqueeze(1), there).squeeze(1)


def _as_tokens(features: Tensor, *, last: bool = False) -> Tensor:
    """A feature map, its channels first or last, to tokens row by row; tokens as they are."""
    if features.ndim != 4:
        return features
    return features.flatten(1, 2) if last else features.flatten(2).transpose(1, 2)


def _try_out(encoder: HuggingFaceEncoder | TimmEncoder, values: Tensor) -> int:
    """Freeze the weights that the features of ``values``, one sample, do not depend on; returns how many channels the
    features have."""
    every = list(encoder.parameters())
    weights = [] if torch.is_inference_mode_enabled() else [weight for weight in every if weight.requires_grad]
    if values.is_floating_point():
        values = values.to(every[0].dtype)
    values = values.to(every[0].device)
    if encoder.prepare is not None:
        encoder.prepare.to(every[0].device)  # a model may be on an accelerator already
    length = values.shape[1] if values.ndim == 2 else 1
    # Some networks draw random numbers in evaluation, too; who builds one must not find others after it.
    with _evaluating(encoder), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        features: Tensor = encoder(values, torch.tensor([length], device=values.device)).features
        slopes = torch.autograd.grad(features.sum(), weights, allow_unused=True) if weights else ()
    for weight, slope in zip(weights, slopes, strict=True):
        weight.requires_grad_(slope is not None)
    return features.shape[2]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """All parts in evaluation mode, and each in its own again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
