"""Hugging Face transformers: ``attn_implementation="crossmodal"``, after :func:`register`.

The attention and the mask interface are both registered: without the second transformers makes no mask at all, and
padding is silently attended to. What an attention function is given is not always to be taken at its word:

- ``module.is_causal`` and the keyword ``is_causal`` say what a kernel might do in place of a mask, and BridgeTower's
  cross-attention carries them too. Here the mask alone decides, as in transformers' own "eager" attention; where it is
  causal and nothing else, it says so to us by an attribute, and the kernel reads no mask.
- Weights are returned where someone collects them (``output_attentions=True``), and only there.
"""

import inspect
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from crossmodal._extras import require
from crossmodal._validate import values_are_readable
from crossmodal.convert import Conversion
from crossmodal.integrations._transformers_layers import Adapted, adapted_class, reason_not_to_adapt
from crossmodal.ops.associate import associate
from crossmodal.ops.attention import attention
from crossmodal.ops.fuse import fuse
from crossmodal.types import Source

NAME = "crossmodal"
_CAUSAL = "_crossmodal_is_causal"

_warned: set[type] = set()


def register() -> None:
    """Makes ``attn_implementation="crossmodal"`` known to transformers, in ``from_pretrained`` and
    ``set_attn_implementation`` alike; may be called again.

    A model whose code never asks for an attention implementation (BLIP, ViLT, LXMERT, FLAVA, VisualBERT, Perceiver and
    others) runs as before; a warning names its class. :func:`adapt` reaches some of them.

    Raises:
        MissingExtraError: if transformers is not installed.

    Example:
        >>> crossmodal.integrations.transformers.register()  # doctest: +SKIP
        >>> model = AutoModel.from_pretrained(name, attn_implementation="crossmodal")  # doctest: +SKIP
    """
    utils = require("transformers.modeling_utils", distribution="transformers", extra="transformers")
    masks = require("transformers.masking_utils", distribution="transformers", extra="transformers")
    utils.AttentionInterface.register(NAME, attention_forward)
    masks.AttentionMaskInterface.register(NAME, attention_mask)
    check = utils.PreTrainedModel.get_correct_attn_implementation
    if not getattr(check, "warns_of_crossmodal", False):
        utils.PreTrainedModel.get_correct_attn_implementation = _warning(check)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers' ``AttentionInterface`` wants it.

    Args:
        module: the layer that asks; not read.
        query: ``(batch, num_heads, seqlen_q, head_dim)``.
        key: ``(batch, num_heads_k, seqlen_k, head_dim)``, fewer heads allowed.
        value: ``(batch, num_heads_k, seqlen_k, head_dim_v)``.
        attention_mask: bool (True = attend) or float (added), broadcasts to ``(batch, num_heads, seqlen_q, seqlen_k)``
            or has more keys than there are.
        scaling: of the scores, ``1 / sqrt(head_dim)`` if None.
        dropout: probability that a weight is dropped.
        position_bias: added to the scores, as T5 does.
        softcap: of the scores, as Gemma 2 does.
        s_aux: ``(num_heads,)`` sinks, as GPT-OSS has.
        kwargs: ``output_attentions``; whatever else is not read.

    Returns:
        ``(batch, seqlen_q, num_heads, head_dim_v)``, and the weights ``(batch, num_heads, seqlen_q, seqlen_k)`` where
        they are collected, else None.
    """
    is_causal = getattr(attention_mask, _CAUSAL, False)
    mask = None if attention_mask is None else _mask(attention_mask, query, key)
    grouped = key.shape[1] not in (1, query.shape[1])
    options: dict[str, Any] = {"scale": scaling, "softcap": softcap or 0.0, "sink": s_aux}
    sources = [Source(key, value, mask=mask, bias=position_bias)]
    if mask is None or position_bias is None:
        term = position_bias if mask is None or is_causal else mask
        out = attention(query, key, value, term, dropout, is_causal, enable_gqa=grouped, **options)
        assert isinstance(out, Tensor)
    else:
        out = fuse(query, sources, dropout_p=dropout, **options).out
    weights = None
    if weights_are_collected(kwargs):
        found = associate(query, sources, **options)
        assert isinstance(found, Tensor)
        weights = found.to(query.dtype)
    return out.transpose(1, 2).contiguous(), weights


def attention_mask(*args: Any, allow_is_causal_skip: bool = True, **kwargs: Any) -> Tensor | None:
    """A bool mask as transformers' ``AttentionMaskInterface`` wants it; None where everything is seen.

    A mask that is causal and hides nothing else carries an attribute that says so: the mask of "sdpa" would be None
    then, which cannot be told from that of cross-attention.
    """
    from transformers.masking_utils import sdpa_mask  # of a statement the compiler knows what to make

    mask: Tensor | None = sdpa_mask(*args, allow_is_causal_skip=allow_is_causal_skip, **kwargs)
    if mask is not None or not allow_is_causal_skip:
        return mask
    mask = sdpa_mask(*args, allow_is_causal_skip=False, **kwargs)
    if mask is None or not values_are_readable(mask):
        return mask
    if mask.shape[2] == 1:  # a single new token
        return None if bool(mask.all()) else mask
    if torch.equal(mask, torch.ones(mask.shape[2:], dtype=torch.bool).tril().expand_as(mask)):
        setattr(mask, _CAUSAL, True)
    return mask


_lock = threading.Lock()
_wanting_weights = 0


@contextmanager
def weights() -> Iterator[None]:
    """Within it every attention layer returns its weights.

    For models (BridgeTower) that do not tell their layers of ``output_attentions=True``, and would return None.
    """
    global _wanting_weights
    with _lock:
        _wanting_weights += 1
    try:
        yield
    finally:
        with _lock:
            _wanting_weights -= 1


def adapt(model: nn.Module) -> Conversion:
    """Brings our attention into the layers of models that never ask transformers for an implementation.

    Those of BLIP, CLAP (audio), ViLT, LXMERT, FLAVA, VisualBERT and Perceiver are known. As with
    :func:`crossmodal.convert` only the class of a layer changes, and the report says what was left.

    Args:
        model: any module; changed in place.

    Returns:
        :class:`crossmodal.Conversion`, to be printed.
    """
    done = Conversion()
    for name, module in model.named_modules():
        if isinstance(module, Adapted):
            continue
        ours = adapted_class(type(module))
        if ours is not None:
            module.__class__ = ours
            done.changed.append(name)
        elif reason := reason_not_to_adapt(type(module)):
            done.left.append((name, reason))
        elif type(module).__name__.endswith("SelfAttention") and _never_asks(type(module)):
            done.left.append((name, f"{type(module).__name__} never asks for an attention implementation"))
    return done


def restore(model: nn.Module) -> Conversion:
    """Undoes :func:`adapt`.

    Args:
        model: any module; changed in place.

    Returns:
        :class:`crossmodal.Conversion`, to be printed.
    """
    done = Conversion()
    for name, module in model.named_modules():
        if isinstance(module, Adapted):
            module.__class__ = type(module).adapts
            done.changed.append(name)
    return done


def _mask(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """In a form that `attention` takes."""
    if mask.shape[-1] > key.shape[2]:
        mask = mask[..., : key.shape[2]]
    if mask.dim() == 4 and mask.shape[2] > 1 and mask.stride(2) == 0:
        mask = mask[:, :, :1]  # one row for every query: padding, which then is never read
    return mask if mask.dtype == torch.bool or mask.is_floating_point() else mask.to(query.dtype)


def weights_are_collected(kwargs: dict[str, Any]) -> bool:
    """Whether a call of an attention layer, with these keywords, has to return its weights."""
    if _wanting_weights or kwargs.get("output_attentions"):
        return True
    try:
        from transformers.utils.output_capturing import _active_collector
    except ImportError:  # another version of transformers passes the keyword
        return False
    if torch.compiler.is_compiling() and not getattr(_active_collector, "compiling", False):
        return False  # none was set in this graph; whether one was outside no compiler can ask
    return any("attentions" in name for name in _active_collector.get() or ())


def _warning(check: Any) -> Any:
    """transformers' check of an implementation's name, which also warns of a model that will not use it."""

    @wraps(check)
    def with_warning(self: Any, requested_attention: str | None, *args: Any, **kwargs: Any) -> str:
        if requested_attention == NAME and type(self) not in _warned and _never_asks(type(self)):
            _warned.add(type(self))
            warnings.warn(
                f"{type(self).__name__} never asks for an attention implementation: attn_implementation={NAME!r} "
                "changes nothing in its own layers (crossmodal.integrations.transformers.adapt may reach them)",
                stacklevel=2,
            )
        return check(self, requested_attention, *args, **kwargs)

    with_warning.warns_of_crossmodal = True  # type: ignore[attr-defined]
    return with_warning


def _never_asks(cls: type) -> bool:
    """Whether the file of a model, or of a layer, defines attention and never looks up an implementation."""
    module = sys.modules.get(cls.__module__)
    try:
        source = inspect.getsource(module) if module is not None else ""
    except (OSError, TypeError):
        return False
    defines = re.search(r"^class \w*Attention\w*\((nn\.)?Module\)", source, re.MULTILINE) is not None
    return defines and "ALL_ATTENTION_FUNCTIONS" not in source
