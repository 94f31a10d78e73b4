"""As a tensor of (batch, heads, rows, width) may lie in memory."""

import torch
from torch import Tensor

LAYOUTS = ("plain", "heads_inside", "strided_last", "transposed_last", "sliced", "one_batch", "one_head", "one_row")


def lay_out(shape: tuple[int, ...], layout: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Random normal numbers of `shape` in the named memory layout; a view of a larger or smaller storage."""

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    b, h, n, d = shape
    if layout == "heads_inside":
        return randn(b, n, h, d).transpose(1, 2)
    if layout == "strided_last":
        return randn(b, h, n, 2 * d + 1)[..., 1::2]
    if layout == "transposed_last":
        return randn(b, h, d, n).transpose(2, 3)
    if layout == "sliced":  # gaps everywhere, an odd storage offset
        return randn(b + 1, h + 1, n + 2, d + 3)[1:, 1:, 1:-1, 1:-2]
    if layout == "one_batch":
        return randn(1, h, n, d).expand(shape)
    if layout == "one_head":
        return randn(b, 1, n, d).expand(shape)
    if layout == "one_row":
        return randn(b, h, 1, d).expand(shape)
    return randn(b, h, n, d)


def distinct_elements(tensor: Tensor) -> Tensor:
    """A view in which every element is its own: in-place changes reach each once, and the layout stays."""
    strides = tensor.stride()
    shape = [min(n, 1) if s == 0 else n for n, s in zip(tensor.shape, strides, strict=True)]
    return tensor.as_strided(shape, strides)


def poison(tensor: Tensor, lengths: Tensor | None) -> None:
    """NaN in the rows of (batch, heads, rows, width) at or beyond lengths; not where memory is shared."""
    if lengths is None or 0 in tensor.stride():
        return
    beyond = torch.arange(tensor.shape[2]) >= lengths[:, None]
    tensor.masked_fill_(beyond[:, None, :, None], float("nan"))


def draw_lengths(dtype: torch.dtype | None, batch: int, limit: int, generator: torch.Generator) -> Tensor | None:
    if dtype is None:
        return None
    return torch.randint(0, limit + 1, (batch,), generator=generator).to(dtype)
