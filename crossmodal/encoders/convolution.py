"""Convolution over time of tokens whose channels lie beside each other, as norms and recurrent layers want them."""

from typing import Any

import torch
from torch import Tensor, nn

from crossmodal.blocks.operators import Implementation
from crossmodal.ops._fusion import differentiates_again, gradients_of_reference
from crossmodal.ops._plain import are_plain_on_cpu, are_recorded

_WORTHWHILE = 20_000_000  # multiply-adds below which a gradient takes less than what is saved costs in calls
_GATHERED = 250_000  # numbers of windows side by side at a time: more would leave the cache


class ConvOverTime(nn.Conv1d):
    """:class:`torch.nn.Conv1d`, weights and all, for tokens ``(B, L, channels)``.

    Conv1d wants ``(B, channels, L)``, and makes a copy on the way in and another one on the way out. The same tokens
    are, without a copy, an image of height 1 in torch's channels_last layout. The implementation ``"reference"`` is
    Conv1d itself.

    Args:
        in_channels, out_channels: of tokens before and after.
        kernel_size, stride, padding: in tokens; padding is zeros.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self.implementation: Implementation = "fused"

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, L, in_channels)`` to ``(B, L / stride, out_channels)``."""
        if self.implementation == "reference":
            return super().forward(tokens.transpose(1, 2)).transpose(1, 2)
        image, kernel = tokens.transpose(1, 2).unsqueeze(2), self.weight.unsqueeze(2)
        convolve = _GatheredGradient.apply if self._gathers(tokens) else _convolve
        found: Tensor = convolve(image, kernel, self.bias, self.stride[0], int(self.padding[0]))
        return found.squeeze(2).transpose(1, 2)

    def _gathers(self, tokens: Tensor) -> bool:
        """Whether the gradient of the weight is one product of what windows hold."""
        if tokens.dtype not in (torch.float32, torch.float64) or not self.weight.requires_grad:
            return False
        if tokens.numel() * self.out_channels * self.kernel_size[0] < _WORTHWHILE * self.stride[0]:
            return False
        tensors = [t for t in (tokens, self.weight, self.bias) if t is not None]
        return are_plain_on_cpu(*tensors) and are_recorded(*tensors)


def _convolve(image: Tensor, kernel: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    return nn.functional.conv2d(image, kernel, bias, (1, stride), (0, padding))


class _GatheredGradient(torch.autograd.Function):
    """Torch's convolution, but for the gradient of the weight: windows side by side, times what flows back to them.

    oneDNN takes half as long again for that gradient as for the others; a product of matrices does not.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, kernel: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(image, kernel)
        ctx.options = stride, padding
        return _convolve(image, kernel, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, kernel = ctx.saved_tensors
        stride, padding = ctx.options
        needs = ctx.needs_input_grad[:3]
        if differentiates_again():
            no_bias = kernel.new_zeros(len(kernel))  # its value is in no gradient

            def convolve(image: Tensor, kernel: Tensor, bias: Tensor) -> list[Tensor]:
                return [_convolve(image, kernel, bias, stride, padding)]

            return (*gradients_of_reference(convolve, [image, kernel, no_bias], needs, [grad]), None, None)
        dimage = _image_gradient(grad, image, kernel, stride, padding) if needs[0] else None
        dkernel = _kernel_gradient(grad, image, kernel, stride, padding)
        return dimage, dkernel, grad.sum((0, 2, 3)) if needs[2] else None, None, None


def _image_gradient(grad: Tensor, image: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    options = [1, stride], [0, padding], [1, 1], False, [0, 0], 1
    found: Tensor = torch.ops.aten.convolution_backward.default(
        grad, image, kernel, None, *options, [True, False, False]
    )[0]
    return found


def _kernel_gradient(grad: Tensor, image: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    out_channels, channels, _, taps = kernel.shape
    rows = grad.squeeze(2).transpose(1, 2)  # (B, steps, out_channels)
    padded = nn.functional.pad(image.squeeze(2).transpose(1, 2), (0, 0, padding, padding)).contiguous()
    sample, step, _ = padded.stride()
    windows = padded.as_strided((*rows.shape[:2], taps * channels), (sample, stride * step, 1))
    gradient = grad.new_zeros(out_channels, taps * channels)  # of the kind of grad, which may stand for several
    steps = max(1, _GATHERED // (taps * channels))  # of one sample
    samples = max(1, steps // rows.shape[1])
    for some, upstream in zip(windows.split(samples), rows.split(samples), strict=True):
        for part, flowing in zip(some.split(steps, 1), upstream.split(steps, 1), strict=True):
            gradient.addmm_(flowing.reshape(-1, out_channels).t(), part.reshape(-1, taps * channels))
    return gradient.view(out_channels, 1, taps, channels).permute(0, 3, 1, 2)
