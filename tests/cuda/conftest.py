"""Fixtures of a real GPU."""

import pytest
import torch

from tests.devices import GpuOperators, operators


@pytest.fixture
def on_gpu():
    """`crossmodal` on CPU tensors runs the kernels of the GPU."""
    with operators(GpuOperators(torch.ops.crossmodal)):
        yield
