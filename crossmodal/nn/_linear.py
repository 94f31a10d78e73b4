"""The linear layers inside our modules: through oneDNN where the BLAS is behind.

torch sends float32 products to its BLAS, which on some CPUs leaves half of the machine unused: MKL runs AVX2 code on
AMD's. torch brings oneDNN for its own use, and an operator that reaches it with any weight. bfloat16 products are
oneDNN's in torch, too, after a pass that writes the bias to the output, which that operator does not need.

A weight packed beforehand brings at most 4 % more, and would grow stale when someone writes to ``weight.data``; so the
weight itself is read, unless :func:`crossmodal.nn.packed_weights` says that it will not change.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmodal.dispatch import is_traced
from crossmodal.nn import _products
from crossmodal.nn.packed_weights import as_packed
from crossmodal.ops._fusion import differentiates_again


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input @ weight.T + bias`` as :func:`torch.nn.functional.linear`, by the faster library.

    Args:
        input: ``(..., in_features)``.
        weight: ``(out_features, in_features)``.
        bias: ``(out_features,)``.

    Returns:
        ``(..., out_features)``, input's dtype.
    """
    if refusal(input, weight, bias) is not None:
        return F.linear(input, weight, bias)
    if needs_gradient(input, weight, bias):
        return _Linear.apply(input, weight, bias)
    rows = input.numel() // input.shape[-1]
    return _products.onednn_linear(input, as_packed(weight, rows), bias)


def refusal(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    """Why a product goes where torch sends it; None if it goes to oneDNN."""
    if torch.compiler.is_compiling():
        return "the compiler chooses"
    if _is_watched():
        return "what traces, counts or fakes torch's operators knows torch's own"
    if not (type(input) is Tensor and _is_plain(weight) and (bias is None or _is_plain(bias))):
        return "a tensor of another class"
    if input.dtype not in (torch.float32, torch.bfloat16):
        return "only float32 and bfloat16 gain"
    if not input.dtype == weight.dtype == (weight if bias is None else bias).dtype:
        return "dtypes do not fit"
    if not (input.is_cpu and weight.is_cpu) or (bias is not None and not bias.is_cpu):
        return "not on the CPU"
    if input.is_nested or input.layout is not torch.strided or weight.layout is not torch.strided:
        return "not dense"
    if input.dim() == 0 or input.shape[-1] != weight.shape[-1]:
        return "shapes do not fit"  # torch says so better
    if torch.is_autocast_enabled("cpu") or torch.autograd.forward_ad._current_level >= 0:
        return "autocast or forward-mode differentiation"
    if torch._C._functorch.maybe_current_level() is not None:
        return "a transform of torch.func"
    if input.numel() * weight.shape[0] < max(1, _products.WORTHWHILE):
        return "too small to gain"
    return None if _products.onednn_leads(input.dtype) else "oneDNN does not lead on this machine"


def _is_watched() -> bool:
    """Whether something traces, counts or fakes torch's operators."""
    return is_traced() or torch._C._len_torch_dispatch_stack() > 0


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, torch.nn.Parameter)


def needs_gradient(*operands: Tensor | None) -> bool:
    """Whether a product has to be differentiated."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)


class _Linear(torch.autograd.Function):
    """Product and its two gradients by oneDNN; a gradient that is differentiated again, or watched, by torch."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # What no gradient is made of is not kept, and may be changed in place.
        wants_input, wants_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(input if wants_weight else None, weight if wants_input else None)
        return _products.onednn_linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad
        dinput = dweight = None
        by_torch = differentiates_again() or _is_watched()
        if wants_input:
            dinput = dout @ weight if by_torch else _products.onednn_linear(dout, weight.t(), None)
        rows = dout.reshape(-1, dout.shape[-1])
        if wants_weight:
            inputs = input.reshape(-1, input.shape[-1])
            dweight = rows.t() @ inputs if by_torch else _products.weight_gradient(rows, inputs)
        return dinput, dweight, rows.sum(0) if wants_bias else None
