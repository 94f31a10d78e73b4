"""Attention layers of transformers that compute their weights themselves, with our attention in that place."""

from functools import cache
from typing import Any

from torch import Tensor, nn

from crossmodal.ops.associate import associate
from crossmodal.ops.attention import attention


class Adapted:
    """What an adapted layer is, beside its own class."""

    adapts: type


def adapted_class(cls: type[nn.Module]) -> type[nn.Module] | None:
    """A subclass of a layer's class whose ``forward`` is ours; None where none is known."""
    return _adapted(cls)  # type: ignore[arg-type]


@cache
def _adapted(cls: Any) -> type[nn.Module] | None:
    forward = _FORWARDS.get(cls.__name__)
    if forward is None or not cls.__module__.startswith("transformers."):
        return None
    return type(cls.__name__, (Adapted, cls), {"forward": forward, "adapts": cls, "__module__": cls.__module__})


def _self_attention(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, output_attentions: bool | None = False
) -> tuple[Tensor, ...]:
    """ViLT, FLAVA, VisualBERT."""
    return _attend(self, hidden_states, hidden_states, attention_mask, bool(output_attentions))


def _lxmert(
    self: Any,
    hidden_states: Tensor,
    context: Tensor,
    attention_mask: Tensor | None = None,
    output_attentions: bool | None = False,
) -> tuple[Tensor, ...]:
    return _attend(self, hidden_states, context, attention_mask, bool(output_attentions))


def _perceiver(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    inputs: Tensor | None = None,
    inputs_mask: Tensor | None = None,
    output_attentions: bool | None = False,
) -> tuple[Tensor, ...]:
    hidden_states = self.layernorm1(hidden_states)
    if inputs is None:
        return _attend(self, hidden_states, hidden_states, attention_mask, bool(output_attentions))
    return _attend(self, hidden_states, self.layernorm2(inputs), inputs_mask, bool(output_attentions))


def _blip(self: Any, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """The vision encoder's; its weights are returned where someone collects them."""
    from crossmodal.integrations.transformers import weights_are_collected

    q, k, v = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
    out, weights = _weighted(self, q, k, v, None, weights_are_collected(kwargs))
    return self.projection(out), weights


def _attend(
    self: Any, hidden_states: Tensor, context: Tensor, mask: Tensor | None, output_attentions: bool
) -> tuple[Tensor, ...]:
    num_heads = getattr(self, "num_attention_heads", None) or self.num_heads
    q, k, v = (
        t.unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for t in (self.query(hidden_states), self.key(context), self.value(context))
    )
    out, weights = _weighted(self, q, k, v, mask, output_attentions)
    return (out,) if weights is None else (out, weights)


def _weighted(
    self: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, output_attentions: bool
) -> tuple[Tensor, Tensor | None]:
    """``(batch, seqlen_q, features)``, and the weights ``(batch, num_heads, seqlen_q, seqlen_k)`` or None."""
    out = attention(q, k, v, mask, self.dropout.p if self.training else 0.0)
    assert isinstance(out, Tensor)
    merged = out.transpose(1, 2).flatten(2)
    if not output_attentions:
        return merged, None
    weights = associate(q, k, attn_mask=mask)
    assert isinstance(weights, Tensor)
    return merged, weights.to(q.dtype)


_FORWARDS: dict[str, Any] = {
    "ViltSelfAttention": _self_attention,
    "FlavaSelfAttention": _self_attention,
    "VisualBertSelfAttention": _self_attention,
    "LxmertAttention": _lxmert,
    "PerceiverSelfAttention": _perceiver,
    "BlipAttention": _blip,
}
