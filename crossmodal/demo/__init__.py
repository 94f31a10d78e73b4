"""`crossmodal demo`: learn to recognise a digit from an image, a sentence and a spoken word together."""

from crossmodal.demo.config import DemoConfig
from crossmodal.demo.model import build_model, load_model
from crossmodal.demo.run import run_demo

__all__ = ["DemoConfig", "build_model", "load_model", "run_demo"]
