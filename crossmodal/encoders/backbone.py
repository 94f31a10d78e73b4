"""Pretrained networks of other libraries as encoders."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from crossmodal._extras import require
from crossmodal.encoders.lengths import check_sequences, check_there
from crossmodal.encoders.output import EncoderOutput
from crossmodal.encoders.padding import is_real, zero_padding

Kind = Literal["image", "text", "audio"]


class HuggingFaceEncoder(nn.Module):
    """A model of ``transformers`` whose answer has ``last_hidden_state``: BERT, ViT, CLIP's towers, Wav2Vec2 and the
    like.

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

    def train(self, mode: bool = True) -> "HuggingFaceEncoder":
        """A frozen model stays in evaluation mode: dropout would only blur it."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def forward(self, values: Tensor, lengths: Tensor) -> EncoderOutput:
        """The input of its kind and ``(B,)``, see :class:`crossmodal.data.Batch`; features ``(B, L, channels)``."""
        if self.kind == "image":
            there = check_there(values, lengths)
            pixels = zero_padding(values.unsqueeze(1), there).squeeze(1)
            features = self.model(pixel_values=pixels).last_hidden_state
            return EncoderOutput(features, there * features.shape[1])
        check_sequences("values", values, lengths)
        real = is_real(lengths, values.shape[1])
        # A row without any token would be NaN under a mask that hides all; it gets one, which is hidden after.
        seen = real | (torch.arange(values.shape[1], device=values.device) == 0)
        values = zero_padding(values, lengths)
        name = "input_ids" if self.kind == "text" else "input_values"
        features = self.model(**{name: values}, attention_mask=seen.long()).last_hidden_state
        if features.shape[1] == values.shape[1]:
            return EncoderOutput(features, lengths)
        shorter = getattr(self.model, "_get_feat_extract_output_lengths", None)
        if shorter is None:  # evenly subsampled, as far as anyone can tell
            tokens = -(-lengths * features.shape[1] // values.shape[1])
        else:
            tokens = shorter(lengths).to(lengths.dtype).clamp(min=0)
        return EncoderOutput(features, tokens.clamp(max=features.shape[1]) * (lengths > 0))


class TimmEncoder(nn.Module):
    """An image model of ``timm``, or any module with its ``forward_features`` and ``num_features``.

    Args:
        model: the model, or a name that ``timm.create_model`` knows; timm needs a torchvision that fits torch.
        pretrained: download its weights, for a name.
        frozen: the weights are kept as they are, in evaluation mode.

    Attributes:
        channels: of its features.

    Raises:
        MissingExtraError: when timm is needed and cannot be imported.
    """

    def __init__(self, model: nn.Module | str, *, pretrained: bool = True, frozen: bool = False) -> None:
        super().__init__()
        if isinstance(model, str):
            library = require("timm", distribution="timm", extra="backbones")
            model = library.create_model(model, pretrained=pretrained)
        network: Any = model
        self.model, self.frozen = network, frozen
        self.channels = int(network.num_features)
        network.requires_grad_(not frozen)

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
