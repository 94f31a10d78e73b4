"""Convolution over time of tokens whose channels lie beside each other, as norms and recurrent layers want them."""

from typing import Any

import torch
from torch import Tensor, nn

from crossmodal.blocks.operators import Implementation
from crossmodal.ops._fusion import differentiates_again, gradients_of_reference
from crossmodal.ops._plain import nothing_transforms

_GATHERED = 250_000  # numbers of windows side by side at a time: more would leave the cache


class ConvOverTime(nn.Conv1d):
    """:class:`torch.nn.Conv1d`, weights and all, for tokens ``(B, L, channels)``.

    Conv1d wants ``(B, channels, L)``, and makes a copy on the way in and another one on the way out. The same tokens
    are, without a copy, an image of height 1 in torch's channels_last layout. The implementation ``"reference"`` is
    Conv1d itself.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.implementation: Implementation = "fused"

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, L, in_channels)`` to ``(B, L / stride, out_channels)``."""
        if self.implementation == "reference":
            return super().forward(tokens.transpose(1, 2)).transpose(1, 2)
        stride, padding = self.stride[0], int(self.padding[0])
        if self._gathers(tokens):
            found: Tensor = _GatheredGradient.apply(tokens, self.weight, self.bias, stride, padding)
            return found
        return _convolve(tokens, self.weight, self.bias, stride, padding, self.dilation[0], self.groups)

    def _gathers(self, tokens: Tensor) -> bool:
        """Whether the gradient of the weight is one product of what windows hold."""
        if torch._C._get_tracing_state() is not None or not nothing_transforms("cpu") or not tokens.numel():
            return False
        if tokens.dtype not in (torch.float32, torch.float64) or self.dilation != (1,) or self.groups != 1:
            return False
        tensors = [tokens, *self.parameters()]
        if not all(type(t) in (Tensor, nn.Parameter) and t.is_cpu and not t.is_inference() for t in tensors):
            return False
        return self.weight.requires_grad and torch.is_grad_enabled()


def _convolve(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    options = (1, stride), (0, padding), (1, dilation), groups
    found = nn.functional.conv2d(_as_image(tokens), weight.unsqueeze(2), bias, *options)
    return found.squeeze(2).transpose(1, 2)


def _as_image(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).unsqueeze(2)


class _GatheredGradient(torch.autograd.Function):
    """Torch's convolution, but for the gradient of the weight: windows side by side, times what flows back to them.

    oneDNN takes half as long again for that gradient as for the others; a product of matrices does not.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(tokens, weight, bias)
        ctx.options = stride, padding
        return _convolve(tokens, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if differentiates_again():
            found = gradients_of_reference(
                lambda *leaves: [_convolve(*leaves, *ctx.options)], [tokens, weight, bias], needs, [grad]
            )
            return (*found, None, None)
        dtokens = _input_gradient(grad, tokens, weight, *ctx.options) if needs[0] else None
        dweight = _weight_gradient(grad, tokens, weight, *ctx.options)
        return dtokens, dweight, grad.sum((0, 1)) if needs[2] else None, None, None


def _input_gradient(grad: Tensor, tokens: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    options = [1, stride], [0, padding], [1, 1], False, [0, 0], 1
    image, _, _ = torch.ops.aten.convolution_backward.default(
        _as_image(grad), _as_image(tokens), weight.unsqueeze(2), None, *options, [True, False, False]
    )
    return image.squeeze(2).transpose(1, 2)


def _weight_gradient(grad: Tensor, tokens: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    out_channels, channels, taps = weight.shape
    padded = nn.functional.pad(tokens, (0, 0, padding, padding)).contiguous()
    sample, step, _ = padded.stride()
    windows = padded.as_strided((*grad.shape[:2], taps * channels), (sample, stride * step, 1))
    gradient = grad.new_zeros(out_channels, taps * channels)
    count = max(1, _GATHERED // windows[0].numel())
    for some, upstream in zip(windows.split(count), grad.split(count), strict=True):
        gradient.addmm_(upstream.flatten(0, 1).t(), some.flatten(0, 1))
    return gradient.view(out_channels, taps, channels).transpose(1, 2)
