"""Symbols of texts, numbered from 1."""

from torch import Tensor

from crossmodal._validate import values_are_readable


def check_symbols(name: str, values: Tensor, symbols: int) -> None:
    """Raises ValueError when one lies above ``symbols``; looked at on CPU only: another device would be waited for."""
    if values.numel() and values_are_readable(values) and (largest := int(values.max())) > symbols:
        raise ValueError(f"{name} must be at most {symbols}, the number of symbols, got {largest}")
