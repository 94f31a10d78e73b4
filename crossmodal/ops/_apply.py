"""`torch.autograd.Function.apply` without what costs more than a small kernel."""

from typing import Any

import torch
from torch._functorch.utils import unwrap_dead_wrappers


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply(*arguments)``, of a function that has no optional arguments.

    torch binds the arguments of a function with `setup_context` to its signature, which it works out anew in each call:
    some 20 us. Only transforms and compilers need more than its base class does.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    return super(torch.autograd.Function, function).apply(*unwrap_dead_wrappers(arguments))  # type: ignore[misc]
