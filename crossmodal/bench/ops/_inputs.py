"""Random input, the same for the same seed, in every precision."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from crossmodal.bench.case import PASSES, Answer, Provider, as_it_is
from crossmodal.bench.shapes import Shape


class Inputs:
    """Draws tensors in float32, rounded to the dtype they will have: all precisions start from equal numbers."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self._generator).to(self.dtype).float()

    def weights(self, *size: int) -> Tensor:
        """Rows that sum to 1."""
        return torch.randn(size, generator=self._generator).softmax(-1).to(self.dtype).float()

    def lengths(self, shape: Shape, seqlen: int) -> Tensor | None:
        """A real length for each sample, or None where everything is real."""
        if not shape.shortest:
            return None
        return torch.randint(min(shape.shortest, seqlen), seqlen + 1, (shape.batch,), generator=self._generator)


class Problem:
    """The tensors of one problem, from which each provider gets leaves of its own.

    Args:
        tensors: what is differentiated.
        dout: the gradient that flows back into the answer.
        dtype: of the leaves.
        out_dtype: of the answer, where that is another.
    """

    def __init__(
        self, tensors: Sequence[Tensor], dout: Tensor, dtype: torch.dtype, out_dtype: torch.dtype | None = None
    ) -> None:
        self._tensors = tuple(tensors)
        self._dout = dout
        self._dtype = dtype
        self._out_dtype = out_dtype or dtype

    def provider(
        self,
        name: str,
        call: Callable[..., Tensor],
        *,
        passes: tuple[str, ...] = PASSES,
        common: Callable[[Answer], Answer] = as_it_is,
        is_opponent: bool = True,
    ) -> Provider:
        # FlexAttention refuses leaves that ask for a gradient, even where none is wanted.
        differentiated = "backward" in passes
        leaves = tuple(tensor.to(self._dtype, copy=True).requires_grad_(differentiated) for tensor in self._tensors)
        return Provider(name, call, leaves, self._dout.to(self._out_dtype), passes, common, is_opponent)

    def exact(self, call: Callable[..., Tensor], *, passes: tuple[str, ...] = PASSES) -> Provider:
        """The same in float64."""
        return Problem(self._tensors, self._dout, torch.float64).provider("exact", call, passes=passes)


def real(lengths: Tensor | None, seqlen: int) -> Tensor | None:
    """``(batch, seqlen)``, True where an element is real."""
    return None if lengths is None else torch.arange(seqlen) < lengths[:, None]


def real_share(lengths: Tensor | None, seqlen: int) -> float:
    """Which share of the padded length is real, on average."""
    return 1.0 if lengths is None else lengths.double().mean().item() / seqlen
