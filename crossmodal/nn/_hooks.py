"""Whether someone wants to see, or change, what goes through a layer."""

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def are_hooked(*layers: nn.Module) -> bool:
    """Whether any of them has to be called: hooks of pruning, for one, make the weights, and some libraries give a
    layer a forward of its own."""
    if _has_any_global_hook() or any("forward" in vars(layer) for layer in layers):
        return True
    return any(getattr(layer, hooks) for layer in layers for hooks in _HOOKS)
