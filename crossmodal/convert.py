"""Whole models: every torch.nn.MultiheadAttention becomes ours in place, and back."""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from crossmodal.nn import Linear, MultiheadAttention


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` or :func:`restore` did; ``str(conversion)`` is a block of a few lines.

    Attributes:
        changed: names of the modules whose class is now another, "" for the model itself.
        left: (name, reason) of each module that looks like attention and stayed what it was.
    """

    changed: list[str] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"changed {len(self.changed)}, left {len(self.left)}"]
        lines += [f"  changed: {name or '(the model itself)'}" for name in self.changed]
        lines += [f"  left: {name or '(the model itself)'}: {reason}" for name, reason in self.left]
        return "\n".join(lines)


def convert(model: nn.Module, *, linear: bool = False) -> Conversion:
    """Makes every :class:`torch.nn.MultiheadAttention` in ``model`` a :class:`crossmodal.nn.MultiheadAttention`.

    Those inside :class:`torch.nn.TransformerEncoderLayer`, ``TransformerDecoderLayer``, ``Transformer`` and any other
    module are found alike. Only the class of a module changes: it stays the same object with the same parameters, hooks
    and optimizer state, and checkpoints fit before and after. ``torch.nn.TransformerEncoderLayer`` then no longer takes
    its own fused path, which would pass the attention by.

    Args:
        model: any module; changed in place.
        linear: also make every :class:`torch.nn.Linear` a :class:`crossmodal.nn.Linear`, whose float32 products go
            through oneDNN where that is faster.

    Returns:
        :class:`Conversion`, to be printed: what changed, and what looks like attention and stayed, with the reason.

    Raises:
        TypeError: if ``model`` is no :class:`torch.nn.Module`.

    Example:
        >>> model = torch.nn.TransformerEncoderLayer(16, 2, batch_first=True)
        >>> print(crossmodal.convert(model))
        changed 1, left 0
          changed: self_attn
        >>> crossmodal.restore(model).changed
        ['self_attn']
    """
    _check(model)
    done = Conversion()
    for name, module in model.named_modules():
        if type(module) is nn.MultiheadAttention:
            module.__class__ = MultiheadAttention
            module._qkv_same_embed_dim = False  # see MultiheadAttention._reset_parameters
            done.changed.append(name)
        elif linear and type(module) is nn.Linear:
            module.__class__ = Linear
            done.changed.append(name)
        elif reason := _reason_to_leave(module, linear):
            done.left.append((name, reason))
    return done


def restore(model: nn.Module) -> Conversion:
    """Undoes :func:`convert`: every :class:`crossmodal.nn.MultiheadAttention` and ``Linear`` becomes torch's.

    Args:
        model: any module; changed in place.

    Returns:
        :class:`Conversion`, to be printed.

    Raises:
        TypeError: if ``model`` is no :class:`torch.nn.Module`.
    """
    _check(model)
    done = Conversion()
    for name, module in model.named_modules():
        if type(module) is MultiheadAttention:
            module.__class__ = nn.MultiheadAttention  # type: ignore[assignment]
            module._qkv_same_embed_dim = module.in_proj_weight is not None
            done.changed.append(name)
        elif type(module) is Linear:
            module.__class__ = nn.Linear  # type: ignore[assignment]
            done.changed.append(name)
        elif isinstance(module, MultiheadAttention):
            done.left.append((name, f"its class {_name(module)} is a subclass of ours"))
    return done


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def _reason_to_leave(module: nn.Module, linear: bool) -> str | None:
    """Why a module stays that looks like what is wanted; None if it does not look like that, or is ours."""
    if isinstance(module, MultiheadAttention | Linear):
        return None
    # Of a MultiheadAttention's out_proj only the weight is read, by whoever calls it.
    if linear and isinstance(module, nn.Linear) and type(module) is not NonDynamicallyQuantizableLinear:
        return f"its class {_name(module)} is a subclass of torch.nn.Linear, which may do otherwise"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled by TorchScript" if "Attention" in module.original_name else None
    if isinstance(module, nn.MultiheadAttention):
        return f"its class {_name(module)} is a subclass of torch.nn.MultiheadAttention, which may do otherwise"
    if type(module).__name__.endswith("Attention") and not any(
        isinstance(child, nn.MultiheadAttention) for child in module.modules()
    ):
        return (
            f"its class {_name(module)} is no torch.nn.MultiheadAttention; where it calls "
            "scaled_dot_product_attention, crossmodal.sdpa() reaches it"
        )
    return None


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
