"""Encoders: raw input of one modality to a sequence of features and their number."""

from crossmodal.encoders.audio import AudioEncoder, CrnnEncoder
from crossmodal.encoders.backbone import HuggingFaceEncoder, TimmEncoder
from crossmodal.encoders.build import ENCODERS, build_encoder
from crossmodal.encoders.image import ImageEncoder
from crossmodal.encoders.log_mel import LogMel
from crossmodal.encoders.output import EncoderOutput
from crossmodal.encoders.resnet import ResNetEncoder
from crossmodal.encoders.spec_augment import SpecAugment
from crossmodal.encoders.text import TextEncoder, TransformerTextEncoder
from crossmodal.encoders.vgg16 import VGG16Encoder
from crossmodal.encoders.vit import ViTEncoder
from crossmodal.encoders.voice_warp import VoiceWarp

__all__ = [
    "ENCODERS",
    "AudioEncoder",
    "CrnnEncoder",
    "EncoderOutput",
    "HuggingFaceEncoder",
    "ImageEncoder",
    "LogMel",
    "ResNetEncoder",
    "SpecAugment",
    "TextEncoder",
    "TimmEncoder",
    "TransformerTextEncoder",
    "VGG16Encoder",
    "ViTEncoder",
    "VoiceWarp",
    "build_encoder",
]
