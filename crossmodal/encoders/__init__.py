"""Encoders: raw input of one modality to a sequence of features and their number."""

from crossmodal.encoders.audio import AudioEncoder
from crossmodal.encoders.image import ImageEncoder
from crossmodal.encoders.log_mel import LogMel
from crossmodal.encoders.output import EncoderOutput
from crossmodal.encoders.text import TextEncoder

__all__ = ["AudioEncoder", "EncoderOutput", "ImageEncoder", "LogMel", "TextEncoder"]
