"""The two-reference rule to the letter, on sizes as they occur: outputs and every gradient."""

import functools

import numpy as np
import pytest
import torch

import crossmodal
from crossmodal import Source, reference
from tests.exact import ExactFusion, wider_than
from tests.tolerance import assert_as_accurate, eps_of

SHAPES = {  # batch, heads, seqlen_q, sequence lengths of the sources, head_dim
    "image over text": (2, 2, 197, (77,), 64),
    "text over image": (2, 2, 77, (197,), 64),
    "text over audio": (1, 2, 32, (1500,), 64),
    "square": (3, 2, 50, (50,), 64),
    "head_dim 80": (1, 2, 150, (128,), 80),
    "tiny": (8, 2, 16, (16,), 32),
    "pooling": (4, 2, 1, (197,), 64),
    "three sources": (1, 2, 77, (197, 250, 77), 64),
    "more queries than a panel": (1, 1, 600, (130,), 24),
}
# Exact results for float64 come from long doubles, for which numpy has no fast product.
SMALL = {"tiny": (2, 2, 16, (16,), 32), "two chunks of keys": (1, 1, 9, (300,), 16)}
CASES = [(name, shape, dtype) for name, shape in SHAPES.items() for dtype in (torch.float32, torch.bfloat16)]
CASES += [(name, shape, torch.float64) for name, shape in SMALL.items()]


class Case:
    """Inputs, exact results, and what the same-dtype reference makes of them; the same for all instruction sets."""

    def __init__(self, shape: tuple, dtype: torch.dtype, masked: bool) -> None:
        batch, heads, seqlen_q, lengths, width = shape
        torch.manual_seed(seqlen_q + width)

        def randn(*size: int) -> torch.Tensor:
            return torch.randn(size, dtype=torch.float64).to(dtype)

        self.query = randn(batch, heads, seqlen_q, width)
        self.sources = []
        for n in lengths:
            source = Source(randn(batch, heads, n, width), randn(batch, heads, n, width))
            if masked:
                bias = torch.randn(1, heads, seqlen_q, n).to(dtype if dtype == torch.float64 else torch.float32)
                source = source._replace(lengths=torch.randint(0, n + 1, (batch,)), bias=bias)
            self.sources.append(source)
        self.dout, dmass = randn(batch, heads, seqlen_q, width), torch.randn(batch, heads, seqlen_q, len(lengths))
        self.dmass = dmass.to(torch.float64 if dtype == torch.float64 else torch.float32)

        exact = ExactFusion(self.query, self.sources, scale=width**-0.5, precision=wider_than(dtype))
        gradients = exact.backward(self.dout, None, self.dmass)
        self.exact = {name: found.value for name, found in {**exact.results, **gradients}.items()}
        self.same_dtype = self.run(reference.fuse)

    def run(self, fuse) -> dict[str, torch.Tensor]:
        query = self.query.detach().requires_grad_()
        leaves, sources = {"query": query}, []
        for i, source in enumerate(self.sources):
            fields = {f: getattr(source, f) for f in ("key", "value", "bias") if getattr(source, f) is not None}
            fields = {f: t.detach().requires_grad_() for f, t in fields.items()}
            leaves.update({f"sources[{i}].{f}": t for f, t in fields.items()})
            sources.append(source._replace(**fields))
        result = fuse(query, sources, return_lse=True, return_mass=True)
        found = torch.autograd.grad([result.out, result.mass], list(leaves.values()), [self.dout, self.dmass])
        return {**result._asdict(), **dict(zip(leaves, found, strict=True))}


case_of = functools.cache(Case)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize(("shape", "dtype"), [c[1:] for c in CASES], ids=[f"{c[0]}-{str(c[2])[6:]}" for c in CASES])
def test_as_accurate_as_torch(isa, shape, dtype, masked):
    case = case_of(shape, dtype, masked)
    for name, got in case.run(crossmodal.fuse).items():
        exact: np.ndarray = case.exact[name]
        assert_as_accurate(name, got, [case.same_dtype[name]], exact, eps_of(dtype, got.dtype))
