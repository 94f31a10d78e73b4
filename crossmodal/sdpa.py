"""Models as they are: their calls of scaled_dot_product_attention come here, and what we refuse goes on to torch."""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import CausalBias
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from crossmodal import dispatch
from crossmodal._validate import FLOAT_DTYPES
from crossmodal.explain import Plan, explain, plans
from crossmodal.ops.attention import attention

# torch's own, whatever stands in its place later.
_torch_sdpa = F.scaled_dot_product_attention
_torch_mha = F.multi_head_attention_forward


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's function of that name by our kernels, and by itself where none takes the call."""
    reason = _refusal(query, key, value, attn_mask)
    if reason is None:
        try:
            out = attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
            assert isinstance(out, Tensor)
            return out
        except (TypeError, ValueError) as error:  # torch takes it, or says so in its own words
            reason = str(error)
    dispatch.fall_back("sdpa", [reason])
    if isinstance(attn_mask, CausalBias):  # which looks for torch's function by its name, where ours may stand now
        return CausalBias._dispatch(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    return _torch_sdpa(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)


@plans(scaled_dot_product_attention, instead_of=_torch_sdpa)
def _plan(arguments: dict[str, Any]) -> Plan:
    reason = _refusal(*(arguments[name] for name in ("query", "key", "value", "attn_mask")))
    if reason is None:
        try:
            return replace(explain(attention, **arguments), op="sdpa")
        except (TypeError, ValueError) as error:
            reason = str(error)
    return Plan("sdpa", "torch", refused=[("attention", reason)])


@contextmanager
def sdpa() -> Iterator[None]:
    """Within it, this thread's calls of :func:`torch.nn.functional.scaled_dot_product_attention` run our kernels.

    Reaches any model that calls it, compiled there or not, also by :class:`torch.nn.MultiheadAttention`, whose own
    fused path (``torch.backends.mha``) is switched off meanwhile. A call that no kernel takes goes on to torch; the
    log ``crossmodal`` says once why, and in :func:`strict` mode it is an error. A query that may attend to nothing
    gives 0.

    Under activation checkpointing backward has to run within it, too, as it computes forward once more; for training
    there is :func:`enable_sdpa`.

    Example:
        >>> model = torch.nn.MultiheadAttention(16, 2)
        >>> x = torch.randn(5, 3, 16)
        >>> with crossmodal.sdpa():
        ...     out, _ = model(x, x, x, need_weights=False)
    """
    _switch_fast_path_off(1)
    try:
        with _Mode():
            yield
    finally:
        _switch_fast_path_off(-1)


class SdpaHandle:
    """Undoes :func:`enable_sdpa`; may be used as a context manager."""

    def __init__(self) -> None:
        self._active = True

    def remove(self) -> None:
        """Gives torch its function back, once every handle is removed."""
        if self._active:
            self._active = False
            _switch(-1)

    def __enter__(self) -> "SdpaHandle":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def enable_sdpa() -> SdpaHandle:
    """As :func:`sdpa`, but for all threads from now on, and at no cost for other calls.

    Puts our function in the place of ``torch.nn.functional.scaled_dot_product_attention``; code that imported that name
    before keeps torch's.

    Returns:
        A handle, whose ``remove()`` undoes it.

    Example:
        >>> handle = crossmodal.enable_sdpa()
        >>> out = torch.nn.functional.scaled_dot_product_attention(*torch.randn(3, 1, 2, 5, 8))
        >>> handle.remove()
    """
    _switch(1)
    return SdpaHandle()


_lock = threading.RLock()
_enabled = 0


def _switch(change: int) -> None:
    global _enabled
    with _lock:
        was, _enabled = _enabled, _enabled + change
        if (was == 0) != (_enabled == 0):
            F.scaled_dot_product_attention = scaled_dot_product_attention if _enabled else _torch_sdpa
        _switch_fast_path_off(change)


_wanted_off = 0
_fast_path_before = True


def _switch_fast_path_off(change: int) -> None:
    """Counts who wants it off, in any thread and in whatever order they end: the last one gives back what was."""
    global _wanted_off, _fast_path_before
    with _lock:
        was, _wanted_off = _wanted_off, _wanted_off + change
        if was == 0:
            _fast_path_before = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        elif _wanted_off == 0:
            torch.backends.mha.set_fastpath_enabled(_fast_path_before)


class _Mode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _torch_sdpa:
            func = scaled_dot_product_attention
        elif func is _torch_mha:
            func = _mha  # no mode sees what torch's function calls within
        elif (whole := _backward_of(func)) is not None and set(types) <= {Tensor, torch.nn.Parameter}:
            # What a checkpoint computes again in backward, it has to compute as it did in forward.
            with self:
                return whole(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _nobody_overrides(*_: Any) -> bool:
    return False


def _copy_of(function: Any, **instead: Any) -> FunctionType:
    """A function of torch that finds these under their names."""
    names = {**function.__globals__, **instead}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    names[function.__name__] = copy
    return copy


_mha = _copy_of(_torch_mha, scaled_dot_product_attention=scaled_dot_product_attention)
# These begin by asking every mode, ours too, which is to be at work in them and would be asked for ever.
_QUESTIONS = dict.fromkeys(("has_torch_function", "has_torch_function_unary"), _nobody_overrides)
_BACKWARD = [
    (holder, name, _copy_of(own, **_QUESTIONS))
    for holder, name in ((Tensor, "backward"), (torch.autograd, "backward"), (torch.autograd, "grad"))
    # What others have put in their place has torch's own within, if it says so.
    if not _QUESTIONS.keys().isdisjoint((own := inspect.unwrap(getattr(holder, name))).__code__.co_names)
]


def _backward_of(function: Any) -> FunctionType | None:
    """The copy that asks nobody, where this is one of those, or what stands in its place now."""
    return next((copy for holder, name, copy in _BACKWARD if getattr(holder, name) is function), None)


def _refusal(query: Any, key: Any, value: Any, attn_mask: Any) -> str | None:
    """Why a call goes on to torch; None if `attention` takes it, or says itself what is wrong."""
    tensors = [query, key, value, *([] if attn_mask is None else [attn_mask])]
    if not all(isinstance(t, Tensor) for t in tensors):
        return "an argument is no tensor"
    if query.device.type == "cuda" and not dispatch.HAS_CUDA_KERNELS:
        return "this build has no CUDA kernels"
    if query.device.type not in ("cpu", "cuda"):
        return f"no kernel for device type {query.device.type!r} yet"
    if query.dtype not in FLOAT_DTYPES:
        return f"no kernel for {query.dtype}"
    if query.is_cuda and query.dim() and value.dim():
        too_wide = dispatch.width_refusals(query, query.shape[-1], value.shape[-1])
        if too_wide:  # torch has kernels for these, or is as plain as our reference
            return too_wide[0]
    if any(map(_has_its_own_way, tensors)):
        return "a tensor class of its own"
    return None


def _has_its_own_way(tensor: Tensor) -> bool:
    """Whether its class may answer the call itself: DTensor, masked tensors, whatever overrides torch's functions."""
    if type(tensor) in (Tensor, torch.nn.Parameter) or tensor.is_nested or isinstance(tensor, CausalBias):
        return False
    of_class = getattr(type(tensor).__torch_function__, "__func__", type(tensor).__torch_function__)
    return of_class not in _DEFAULT_WAYS or is_traceable_wrapper_subclass(tensor)


_DEFAULT_WAYS = (Tensor.__torch_function__.__func__, torch._C._disabled_torch_function_impl)  # type: ignore[attr-defined]
