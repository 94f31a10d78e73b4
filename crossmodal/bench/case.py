"""One problem and the ways to solve it: what is compared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

PASSES = ("forward", "backward", "both")
SUBJECT = "crossmodal"


Answer = Mapping[str, Tensor]


def as_it_is(answer: Answer) -> Answer:
    return answer


@dataclass(frozen=True)
class Provider:
    """One way to compute the answer.

    Attributes:
        name: ``"reference"``, ``"sdpa"``, ...; ``"crossmodal"`` is the subject of the comparison.
        call: the answer from ``leaves``.
        leaves: what it starts from, in the layout that suits it; gradients are those of the leaves.
        dout: the gradient that flows back into its answer.
        passes: which of ``PASSES`` it has.
        common: brings its answer (``"out"``) and its gradients (``"grad0"``, ...) into the form in which those of all
            providers are compared.
        is_opponent: False where it starts from work already done: it is reported, but speed-ups are not over it.
    """

    name: str
    call: Callable[..., Tensor]
    leaves: tuple[Tensor, ...]
    dout: Tensor
    passes: tuple[str, ...] = PASSES
    common: Callable[[Answer], Answer] = as_it_is
    is_opponent: bool = True

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.call(*self.leaves)

    def graph(self) -> Tensor:
        """The answer, ready for backward."""
        return self.call(*self.leaves)

    def backward(self, out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, self.leaves, self.dout)

    def both(self) -> tuple[Tensor, ...]:
        return self.backward(self.graph())

    def evaluate(self) -> Answer:
        """Answer and, where it has a backward pass, gradients, in the common form."""
        if "backward" not in self.passes:
            return self.common({"out": self.forward()})
        out = self.graph()
        gradients = {f"grad{i}": gradient for i, gradient in enumerate(self.backward(out))}
        return self.common({"out": out.detach(), **gradients})


@dataclass(frozen=True)
class Case:
    """One problem in one dtype.

    Attributes:
        op: the operator.
        shape: the problem's name.
        size: ``(batch, num_heads, seqlen_q, seqlen_k, head_dim)``, for people; of several sources
            the lengths are added.
        dtype: of the inputs.
        exact: the answer in float64.
        reference: plain torch in ``dtype``, by which the allowed error is measured; one of ``providers``.
        providers: everything that is compared.
        operations: of the forward pass; of what is masked or padded, none.
        backward_factor: operations of the backward pass over those of the forward pass.
        passes: those of the case.
    """

    op: str
    shape: str
    size: tuple[int, ...]
    dtype: torch.dtype
    exact: Provider
    reference: Provider
    providers: tuple[Provider, ...]
    operations: float
    backward_factor: float = 2.5
    passes: tuple[str, ...] = PASSES

    def operations_of(self, which: str) -> float:
        factor = {"forward": 1.0, "backward": self.backward_factor, "both": 1 + self.backward_factor}[which]
        return factor * self.operations

    def bytes_of(self, which: str) -> float:
        """What has to cross the memory bus at least: leaves and answer; backward reads them and writes gradients."""
        leaves = self.reference.leaves
        once = float(sum(t.numel() * t.element_size() for t in (*leaves, self.reference.dout)))
        return {"forward": 1, "backward": 2, "both": 3}[which] * once


class UnavailableError(Exception):
    """A case that cannot be run here: the operator, or what it needs, is not there."""


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def function_of(module: ModuleType, name: str) -> Callable[..., Tensor]:
    """A public function, which this version may not have yet.

    Raises:
        UnavailableError: it has not.
    """
    if not hasattr(module, name):
        raise UnavailableError(f"this version has no {module.__name__}.{name}")
    found: Callable[..., Tensor] = getattr(module, name)
    return found
