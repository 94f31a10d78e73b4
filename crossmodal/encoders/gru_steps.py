"""Two GRUs, one ahead and one back over the real tokens, in one loop over the steps: training on CPU.

torch's GRU on CPU is a composition of some ten recorded operators a step, which autograd keeps and visits again. Here
a step is six operators forward and three backward, for both directions together, and all that does not depend on the
step before is done for all steps at once. Over long sequences of few channels that is less than half of the time; the
wider the layers, the more of it is products, and the less it gains.

A step is that of :class:`torch.nn.GRU`, in which b_hr and b_hz join b_ir and b_iz::

    r = sigmoid(W_ir x + b_ir + W_hr h)
    z = sigmoid(W_iz x + b_iz + W_hz h)
    q = W_hn h + b_hn
    n = tanh(W_in x + b_in + r * q)
    next h = n + z * (h - n)

With d the gradient of the next h, the gradients of q and of the arguments of r, z and n are d times what is known
before the loop backward begins::

    n: (1 - z) (1 - n^2)        r: (that of n) q r (1 - r)
    q: (that of n) r            z: (h - n) z (1 - z) = (next h - n) (1 - z)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crossmodal.encoders.padding import mirrored, reverse_real
from crossmodal.nn._hooks import are_hooked
from crossmodal.ops._fusion import differentiates_again, gradients_of_reference
from crossmodal.ops._plain import are_plain_on_cpu, are_recorded

_WAYS = 2  # ahead and back


def runs_in_steps(values: Tensor, *layers: nn.Module) -> bool:
    """Whether :func:`read_both_ways` stands for these layers, which are as :class:`Bidirectional` makes them."""
    if not all(type(layer) is nn.GRU and layer.input_size == values.shape[2] for layer in layers):
        return False
    if values.dtype not in (torch.float32, torch.float64) or not values.numel() or are_hooked(*layers):
        return False
    tensors = [values, *(weight for layer in layers for weight in _weights(layer))]
    return are_plain_on_cpu(*tensors) and are_recorded(*tensors)


def read_both_ways(values: Tensor, lengths: Tensor, ahead: nn.Module, back: nn.Module) -> Tensor:
    """``(B, L, in_features)`` and ``(B,)`` to ``(B, L, 2 * hidden)``: ahead beside back."""
    read: Tensor = _ReadBothWays.apply(values, lengths, *_weights(ahead), *_weights(back))
    return read


def _weights(layer: nn.Module) -> list[Tensor]:
    """Of the input, of the state, and their biases; each the rows of r, z and n."""
    return [getattr(layer, f"{kind}_l0") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


class _Orders(NamedTuple):
    """Where tokens ``(B, L, ways)`` are among steps ``(L, ways, B)``, and the other way round, as numbers of rows."""

    steps: Tensor
    tokens: Tensor

    def by_step(self, rows: Tensor, steps: int) -> Tensor:
        """``(B, L, ways * features)`` to ``(L, ways, B, features)``."""
        found = rows.reshape(len(self.tokens), -1).index_select(0, self.tokens)
        return found.view(steps, _WAYS, -1, found.shape[1])

    def by_token(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """The inverse, to ``(B * L, ways * features)``; `out` has as many elements."""
        features = rows.shape[3]
        if out is None:
            out = rows.new_empty(len(self.steps) // _WAYS, _WAYS * features)
        torch.index_select(rows.view(-1, features), 0, self.steps, out=out.view(-1, features))
        return out.view(-1, _WAYS * features)


class _Run(NamedTuple):
    """The letters of the formula at all steps, ``(L, ways, B, hidden)``: r beside z; h before all and after each."""

    rz: Tensor
    n: Tensor
    q: Tensor
    h: Tensor


class _ReadBothWays(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, lengths: Tensor, *weights: Tensor) -> Tensor:
        orders = _orders(lengths, values.shape[1])
        run = _step_ahead(values, orders, weights)
        ctx.save_for_backward(values, lengths, *weights, *orders, *run)
        read = values.new_empty(*values.shape[:2], _WAYS * run.n.shape[3])  # no view: it may be modified in place
        orders.by_token(run.h[1:], out=read)
        return read

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, lengths, *saved = ctx.saved_tensors
        weights, orders, run = saved[:8], _Orders(*saved[8:10]), _Run(*saved[10:])
        if differentiates_again():
            return tuple(
                gradients_of_reference(_read_by_torch, [values, lengths, *weights], ctx.needs_input_grad, [grad])
            )
        gates = _step_back(grad, orders, run, weights)
        return _gradients(values, orders.by_token(gates), orders.by_token(run.h[:-1]), weights, ctx.needs_input_grad)


def _read_by_torch(values: Tensor, lengths: Tensor, *weights: Tensor) -> tuple[Tensor]:
    """The function in operators that can be differentiated twice."""
    start = values.new_zeros(1, len(values), weights[1].shape[1])
    options = True, 1, 0.0, True, False, True  # biases, layers, dropout, training, both directions, batch first
    ahead, _ = torch.gru(values, start, weights[:4], *options)
    back, _ = torch.gru(reverse_real(values, lengths), start, weights[4:], *options)
    return (torch.cat([ahead, reverse_real(back, lengths)], 2),)


def _orders(lengths: Tensor, size: int) -> _Orders:
    batch = len(lengths)
    at, way, sample = (torch.arange(n, device=lengths.device) for n in (size, _WAYS, batch))
    places = torch.stack([at.expand(batch, size), mirrored(lengths, size)])  # its own inverse
    way, sample = way.view(-1, 1, 1), sample.view(-1, 1)
    steps = ((places * _WAYS + way) * batch + sample).permute(1, 2, 0)
    tokens = ((sample * size + places) * _WAYS + way).permute(2, 0, 1)
    return _Orders(steps.flatten(), tokens.flatten())


def _step_ahead(values: Tensor, orders: _Orders, weights: Sequence[Tensor]) -> _Run:
    run = _before_steps(values, orders, weights)
    rz, n, q, h = run
    r, z = rz.chunk(2, 3)
    to_rz, to_q = (part.mT.contiguous() for part in _split(torch.stack([weights[1], weights[5]])))
    for rz_, r_, z_, n_, q_, before, after in zip(*map(torch.unbind, (rz, r, z, n, q, h[:-1], h[1:])), strict=True):
        rz_.baddbmm_(before, to_rz).sigmoid_()
        q_.baddbmm_(before, to_q)
        n_.addcmul_(r_, q_).tanh_()
        torch.lerp(n_, before, z_, out=after)
    return run


def _before_steps(values: Tensor, orders: _Orders, weights: Sequence[Tensor]) -> _Run:
    """Of all letters what h has no part in."""
    weight, bias, state_bias = (torch.stack([weights[i], weights[4 + i]]) for i in (0, 2, 3))
    (rz_weight, n_weight), (rz_bias, n_bias), (rz_state_bias, q_bias) = map(_split, (weight, bias, state_bias))
    rz = orders.by_step(_linear(values, rz_weight, rz_bias + rz_state_bias), values.shape[1])
    n = orders.by_step(_linear(values, n_weight, n_bias), values.shape[1])
    q = q_bias.unsqueeze(1).expand_as(n).contiguous()
    h = torch.cat([torch.zeros_like(n[:1]), torch.empty_like(n)])
    return _Run(rz, n, q, h)


def _split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``(ways, 3 * hidden, ...)`` to the rows of r and z, and those of n."""
    hidden = weight.shape[1] // 3
    return weight[:, : 2 * hidden], weight[:, 2 * hidden :]


def _linear(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Both ways beside each other: ``(B, L, C)`` and ``(ways, features, C)`` to ``(B, L, ways * features)``."""
    return nn.functional.linear(values, weight.flatten(0, 1), bias.flatten())


def _step_back(grad: Tensor, orders: _Orders, run: _Run, weights: Sequence[Tensor]) -> Tensor:
    """Gradients of q and of the arguments of r, z and n, beside each other: ``(L, ways, B, 4 * hidden)``."""
    hidden = run.n.shape[3]
    dh = orders.by_step(grad, len(run.n))
    gates = _factors(run)
    # In the order q, r, z the first three quarters go to the state, in r, z, n the last three to the input.
    of_state = torch.stack([weights[1], weights[5]]).roll(hidden, 1)
    to_state = gates.flatten(3)[..., : 3 * hidden]
    z = run.rz[..., hidden:]
    wide = dh.unsqueeze(3)
    gates[-1].mul_(wide[-1])
    backward = (torch.unbind(t)[::-1] for t in (dh[1:], z[1:], to_state[1:], dh[:-1], wide[:-1], gates[:-1]))
    for dh_, z_, to_state_, earlier, wide_, gates_ in zip(*backward, strict=True):
        earlier.addcmul_(dh_, z_).baddbmm_(to_state_, of_state)
        gates_.mul_(wide_)
    return gates.flatten(3)


def _factors(run: _Run) -> Tensor:
    """What the gradient of the next h is multiplied by to get those of q, r, z and n: ``(L, ways, B, 4, hidden)``."""
    rz, n, q, h = run
    r, z = rz.chunk(2, 3)
    factors = n.new_empty(*n.shape[:3], 4, n.shape[3])
    of_q, of_r, of_z, of_n = factors.unbind(3)
    spare = torch.addcmul(n.new_tensor(1.0), n, n, value=-1)
    torch.addcmul(spare, spare, z, value=-1, out=of_n)
    product = torch.mul(of_n, r, out=spare)
    of_q.copy_(product)
    torch.mul(torch.addcmul(product, product, r, value=-1), q, out=of_r)
    change = torch.sub(h[1:], n, out=spare)
    torch.addcmul(change, change, z, value=-1, out=of_z)
    return factors


def _gradients(
    values: Tensor, gates: Tensor, states: Tensor, weights: Sequence[Tensor], needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Of all arguments of the function, from gradients ``(B * L, ways * 4 * hidden)`` and states by token."""
    hidden = states.shape[1] // _WAYS
    tokens = values.flatten(0, 1)
    dtokens = torch.zeros_like(tokens) if needed[0] else None
    dweights: list[Tensor | None] = []
    dbias = gates.sum(0).chunk(_WAYS)
    for way, (both, state) in enumerate(zip(gates.chunk(_WAYS, 1), states.chunk(_WAYS, 1), strict=True)):
        of_state, of_input = both[:, : 3 * hidden], both[:, hidden:]
        if dtokens is not None:
            dtokens.addmm_(of_input, weights[4 * way])
        dweights += [of_input.t() @ tokens, (of_state.t() @ state).roll(-hidden, 0)]
        dweights += [dbias[way][hidden:], dbias[way][: 3 * hidden].roll(-hidden)]
    return None if dtokens is None else dtokens.view_as(values), None, *dweights
