"""Pretrained networks of other libraries as encoders."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from crossmodal._extras import require
from crossmodal.encoders.lengths import check_sequences, check_there
from crossmodal.encoders.output import EncoderOutput
from crossmodal.encoders.padding import is_real, zero_padding

Kind = Literal["image", "text", "audio"]


class HuggingFaceEncoder(nn.Module):
    """A model of ``transformers`` whose answer has ``last_hidden_state``: BERT, ViT, CLIP's towers, Wav2Vec2 and the
    like.

    Weights that the features do not depend on, such as those of a pooler or of the token that masks, are kept as they
    are: DistributedDataParallel waits for the gradient of every weight that learns.

    Args:
        model: the model, or a name or folder that ``transformers.AutoModel`` knows.
        kind: what it reads. Images go in as ``pixel_values``, text as ``input_ids`` with a mask, audio as
            ``input_values`` with a mask. What a feature extractor does before (normalising, resizing) is the
            caller's part.
        frozen: the weights are kept as they are, in evaluation mode.

    Attributes:
        channels: of its features.

    Raises:
        MissingExtraError: when transformers is needed and not installed.
        ValueError: for another ``kind``.
    """

    def __init__(self, model: nn.Module | str, kind: Kind, *, frozen: bool = False) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        if isinstance(model, str):
            library = require("transformers", distribution="transformers", extra="backbones")
            model = library.AutoModel.from_pretrained(model)
        network: Any = model
        self.model, self.kind, self.frozen = network, kind, frozen
        self.channels = int(network.config.hidden_size)
        network.requires_grad_(not frozen)
        example = self._example()
        if example is not None:
            _freeze_unused(self, example)

    def train(self, mode: bool = True) -> "HuggingFaceEncoder":
        """A frozen model stays in evaluation mode: dropout would only blur it."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def forward(self, values: Tensor, lengths: Tensor) -> EncoderOutput:
        """The input of its kind and ``(B,)``, see :class:`crossmodal.data.Batch`; features ``(B, L, channels)``.

        A sound that is shorter than what a token is made of goes on in silence, and has one token.
        """
        if self.kind == "image":
            there = check_there(values, lengths)
            pixels = zero_padding(values.unsqueeze(1), there).squeeze(1)
            features = self.model(pixel_values=pixels).last_hidden_state
            return EncoderOutput(features, there * features.shape[1])
        check_sequences("values", values, lengths)
        short = max(0, self._values_for(self._fewest_tokens()) - values.shape[1])
        values = pad(zero_padding(values, lengths), (0, short))
        # A row without any token would be NaN under a mask that hides all; it gets one, which is hidden after.
        read = lengths.clamp(min=self._values_for(1))
        seen = is_real(read, values.shape[1])
        name = "input_ids" if self.kind == "text" else "input_values"
        features = self.model(**{name: values}, attention_mask=seen.long()).last_hidden_state
        if features.shape[1] == values.shape[1]:
            return EncoderOutput(features, lengths)
        shorter = getattr(self.model, "_get_feat_extract_output_lengths", None)
        # Where the model does not say, evenly subsampled, as far as anyone can tell.
        tokens = -(-read * features.shape[1] // values.shape[1]) if shorter is None else shorter(read).to(lengths.dtype)
        return EncoderOutput(features, tokens.clamp(max=features.shape[1]) * (lengths > 0))

    def _example(self) -> Tensor | None:
        """One input as small as can be; None where the configuration does not tell how small that is."""
        if self.kind == "text":
            return torch.zeros(1, 1, dtype=torch.int64)
        if self.kind == "audio":
            return torch.zeros(1, self._values_for(1)) if hasattr(self.model.config, "conv_kernel") else None
        size = getattr(self.model.config, "image_size", None)
        if size is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return torch.zeros(1, getattr(self.model.config, "num_channels", 3), height, width)

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

    Attributes:
        channels: of its features.

    Raises:
        MissingExtraError: when timm is needed and cannot be imported.
    """

    def __init__(
        self,
        model: nn.Module | str,
        *,
        size: Sequence[int] | None = None,
        pretrained: bool = True,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(model, str):
            library = require("timm", distribution="timm", extra="backbones")
            model = library.create_model(model, pretrained=pretrained)
        network: Any = model
        self.model, self.frozen = network, frozen
        self.channels = int(network.num_features)
        network.requires_grad_(not frozen)
        if size is not None:
            _freeze_unused(self, torch.zeros(1, *size))

    def train(self, mode: bool = True) -> "TimmEncoder":
        """A frozen model stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def forward(self, pixels: Tensor, lengths: Tensor) -> EncoderOutput:
        """``(B, channels, height, width)`` and ``(B,)``, 1 = there; a feature map becomes tokens row by row."""
        there = check_there(pixels, lengths)
        blank = zero_padding(pixels.unsqueeze(1), there).squeeze(1)
        features = self.model.forward_features(blank)
        if features.ndim == 4:
            features = features.flatten(2).transpose(1, 2)
        return EncoderOutput(features, there * features.shape[1])


def _freeze_unused(encoder: HuggingFaceEncoder | TimmEncoder, values: Tensor) -> None:
    """Freeze the weights that the features of ``values``, one sample, do not depend on."""
    weights = [weight for weight in encoder.parameters() if weight.requires_grad]
    if not weights or torch.is_inference_mode_enabled():  # nothing learns
        return
    if values.is_floating_point():
        values = values.to(weights[0].dtype)
    values = values.to(weights[0].device)
    length = values.shape[1] if values.ndim == 2 else 1
    # Some networks draw random numbers in evaluation, too; who builds one must not find others after it.
    with _evaluating(encoder), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        features = encoder(values, torch.tensor([length], device=values.device)).features
        slopes = torch.autograd.grad(features.sum(), weights, allow_unused=True)
    for weight, slope in zip(weights, slopes, strict=True):
        weight.requires_grad_(slope is not None)


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
