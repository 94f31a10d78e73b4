"""Fixtures of the emulated GPU."""

import pytest

from tests.native.emulated import MODES


@pytest.fixture(params=MODES, ids=lambda mode: "-".join(part.name.lower() for part in mode))
def emulated(request, emulated_once):
    """Emulated kernels, once for each order in which blocks and threads run and copies land."""
    emulated_once.set_mode(*request.param)
    return emulated_once
