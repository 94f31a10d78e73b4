"""Attention layers of transformers that compute their weights themselves, with our attention in that place."""

import inspect
from functools import cache
from typing import Any

from torch import Tensor, nn

from crossmodal.ops.associate import associate
from crossmodal.ops.attention import attention
from crossmodal.ops.fuse import fuse
from crossmodal.types import Source


class Adapted:
    """What an adapted layer is, beside its own class."""

    adapts: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A pickle names the class of transformers, and adapts it anew: that of the adapter has no name of its own."""
        reduced = super().__reduce_ex__(protocol)
        assert isinstance(reduced, tuple)
        return _empty_layer, (self.adapts,), *reduced[2:]


def _empty_layer(cls: type[nn.Module]) -> nn.Module:
    adapted = adapted_class(cls)
    assert adapted is not None, f"{cls.__name__} was adapted by another version"
    return adapted.__new__(adapted)


def adapted_class(cls: type[nn.Module]) -> type[nn.Module] | None:
    """A subclass of a layer's class whose ``forward`` is ours; None where none is known."""
    return _adapted(cls)  # type: ignore[arg-type]


def reason_not_to_adapt(cls: type[nn.Module]) -> str | None:
    """Why a layer that an adapter is meant for stays: what the adapter would not read must not be lost silently."""
    forward = _FORWARDS.get(cls.__name__)
    if forward is None or not cls.__module__.startswith("transformers."):
        return None
    unknown = inspect.signature(cls.forward).parameters.keys() - inspect.signature(forward).parameters.keys()
    return f"this version of {cls.__name__} takes {', '.join(sorted(unknown))}, which is not known" if unknown else None


@cache
def _adapted(cls: Any) -> type[nn.Module] | None:
    forward = _FORWARDS.get(cls.__name__)
    if forward is None or not cls.__module__.startswith("transformers.") or reason_not_to_adapt(cls) is not None:
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


def _blip_text(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    cache: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Self- and cross-attention of BLIP's text model, with a cache, which was called past_key_values before 5.24."""
    from crossmodal.integrations.transformers import weights_are_collected

    past_key_values = past_key_values if cache is None else cache
    if encoder_hidden_states is None:
        k, v = _cached(self, hidden_states, past_key_values, "self_attention_cache")
        mask = attention_mask
    else:
        k, v = _cached(self, encoder_hidden_states, past_key_values, "cross_attention_cache")
        mask = encoder_attention_mask
    q = _heads(self.query(hidden_states), self.num_attention_heads)
    return _weighted(self, q, k, v, mask, weights_are_collected(kwargs))


def _cached(self: Any, states: Tensor, cache: Any, part: str) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer that has a cache, or a pair of them for its own and for cross-attention."""
    is_pair = hasattr(cache, part)
    own = getattr(cache, part) if is_pair else cache
    crosses = is_pair and part == "cross_attention_cache"
    if crosses and cache.is_updated.get(self.layer_idx):  # the encoder's do not change while text is generated
        layer = own.layers[self.layer_idx]
        return layer.keys, layer.values
    k, v = (_heads(t, self.num_attention_heads) for t in (self.key(states), self.value(states)))
    if own is not None:
        k, v = own.update(k, v, self.layer_idx)
    if crosses:
        cache.is_updated[self.layer_idx] = True
    return k, v


def _clap_audio(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, output_attentions: bool | None = False
) -> tuple[Tensor, ...]:
    """Windows of a spectrogram, (batch * windows, area, features), each with a mask of its own or none."""
    area = self.window_size[0] * self.window_size[1]
    bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
    bias = bias.unflatten(0, (area, area)).permute(2, 0, 1)
    q, k, v = (
        _heads(t, self.num_attention_heads)
        for t in (self.query(hidden_states), self.key(hidden_states), self.value(hidden_states))
    )
    if attention_mask is not None:
        q, k, v = (t.unflatten(0, (-1, len(attention_mask))) for t in (q, k, v))
        attention_mask = attention_mask[:, None]
    out, weights = _weighted(self, q, k, v, attention_mask, bool(output_attentions), bias)
    if attention_mask is not None:
        out, weights = out.flatten(0, 1), None if weights is None else weights.flatten(0, 1)
    return (out,) if weights is None else (out, weights)


def _heads(features: Tensor, num_heads: int) -> Tensor:
    return features.unflatten(-1, (num_heads, -1)).transpose(-2, -3)


def _attend(
    self: Any, hidden_states: Tensor, context: Tensor, mask: Tensor | None, output_attentions: bool
) -> tuple[Tensor, ...]:
    num_heads = getattr(self, "num_attention_heads", None) or self.num_heads
    q, k, v = (_heads(t, num_heads) for t in (self.query(hidden_states), self.key(context), self.value(context)))
    out, weights = _weighted(self, q, k, v, mask, output_attentions)
    return (out,) if weights is None else (out, weights)


def _weighted(
    self: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    output_attentions: bool,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``(batch, seqlen_q, features)``, and the weights ``(batch, num_heads, seqlen_q, seqlen_k)`` or None."""
    dropout_p = self.dropout.p if self.training else 0.0
    sources = [Source(k, v, mask=mask, bias=bias)]
    if bias is None:
        out = attention(q, k, v, mask, dropout_p)
        assert isinstance(out, Tensor)
    else:
        out = fuse(q, sources, dropout_p=dropout_p).out
    merged = out.transpose(-2, -3).flatten(-2)
    if not output_attentions:
        return merged, None
    weights = associate(q, sources)
    assert isinstance(weights, Tensor)
    return merged, weights.to(q.dtype)


_FORWARDS: dict[str, Any] = {
    "ViltSelfAttention": _self_attention,
    "FlavaSelfAttention": _self_attention,
    "VisualBertSelfAttention": _self_attention,
    "LxmertAttention": _lxmert,
    "PerceiverSelfAttention": _perceiver,
    "BlipAttention": _blip,
    "BlipTextSelfAttention": _blip_text,
    "ClapAudioSelfAttention": _clap_audio,
}
