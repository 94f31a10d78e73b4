"""Who gives the right answer: before anything is timed, all are held against float64.

An answer is right when its error is at most twice that of plain torch in the same dtype, and a little more:

    max|answer - exact| <= 2 * max|reference - exact| + 4 * eps * max|exact|

for the output and for every gradient: the two-reference rule of FlashAttention's tests (Dao et al., 2022).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from crossmodal.bench.case import Case


class Verdict(NamedTuple):
    """What is wrong with a provider: ``"wrong"`` or ``"refused"``, and the reason."""

    verdict: str
    reason: str


def judge(case: Case, only: frozenset[str] = frozenset()) -> dict[str, Verdict]:
    """Who is not to be timed: an entry for each provider that refuses the problem or answers it wrongly.

    Args:
        only: names of providers to look at; empty: all.
    """
    exact = case.exact.evaluate()
    reference = case.reference.evaluate()
    verdicts = {}
    for provider in case.providers:
        if only and provider.name not in only:
            continue
        try:
            answer = reference if provider is case.reference else provider.evaluate()
        except Exception as error:
            # Whatever torch raises where it has no way, it is a refusal: Dynamo alone has dozens of kinds.
            verdicts[provider.name] = Verdict("refused", f"{type(error).__name__}: {_first_line(error)}")
            continue
        for name, got in answer.items():
            if fault := _fault(got, exact[name], reference[name]):
                verdicts[provider.name] = Verdict("wrong", f"{name} {fault}")
                break
    return verdicts


def _fault(got: Tensor, exact: Tensor, reference: Tensor) -> str:
    if got.shape != exact.shape:
        return f"has shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    if exact.numel() == 0:
        return ""
    error = (got.double() - exact).abs().max().item()
    own = (reference.double() - exact).abs().max().item()
    eps = torch.finfo(reference.dtype).eps
    allowed = 2 * own + 4 * eps * exact.abs().max().item()
    # Not `error > allowed`: NaN has to be wrong too.
    return "" if error <= allowed else f"is off by {error:.2g}, allowed {allowed:.2g}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]
