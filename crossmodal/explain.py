"""What a call would run, and why nothing better: ``explain`` and the ``Plan`` that it prints."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What a call would run; ``str(plan)`` is a block of a few lines.

    Attributes:
        op: name of the function, "attention".
        kernel: name of the kernel, "avx512_bf16"; "reference" where plain torch answers, "none" where there is nothing
            to compute.
        details: what is known about kernel and problem: dtype, instruction set, tiles, operations.
        refused: (kernel, reason) of whatever would have come first, best first.
    """

    op: str
    kernel: str
    details: dict[str, Any] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        width = max((len(name) for name in self.details), default=0)
        lines = [f"crossmodal.{self.op}: {self.kernel}"]
        lines += [f"  {name:{width}}  {_text(value)}" for name, value in self.details.items()]
        if self.refused:
            lines.append("  refused:")
            lines += [f"    {kernel}: {reason}" for kernel, reason in self.refused]
        return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


Planner = Callable[[dict[str, Any]], Plan]

# Function or class -> planner. Each file of `crossmodal.ops` adds its own, so that this one need not import them.
_planners: dict[Any, Planner] = {}
# A function of torch -> ours that has its arguments, and a signature.
_stand_ins: dict[Any, Callable[..., Any]] = {}


def plans(function: Callable[..., Any], *, instead_of: Any = None) -> Callable[[Planner], Planner]:
    """Registers the planner of a public function, or of a module's class; also for the function that it replaces.

    It gets the arguments by name, defaults filled in; that of a class also the module, as ``module``.
    """

    def register(planner: Planner) -> Planner:
        _planners[function] = planner
        if instead_of is not None:
            _stand_ins[instead_of] = function
        return planner

    return register


def explain(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Plan:
    """What ``fn(*args, **kwargs)`` would run: its kernel, tiles and instruction set, and why nothing better.

    Checks the arguments of a function as the call would, of a module the shapes of its tokens, and runs no kernel.

    Args:
        fn: :func:`attention` (with dense or nested tensors), :func:`fuse`, :func:`attention_varlen`,
            :func:`weighted_sum`, :func:`softmax_weighted_sum` or :func:`associate`; or a module:
            :class:`crossmodal.nn.MultiheadAttention`, ``CrossModalAttention``, ``AttentionPool`` or ``Linear``; or
            :func:`torch.nn.functional.scaled_dot_product_attention`, as it would run within :func:`sdpa`.
        args, kwargs: what it would be called with, tensors of any shape, dtype and device that it takes.

    Returns:
        :class:`Plan`, to be printed.

    Raises:
        TypeError: if ``fn`` is another function; for arguments of the wrong type or dtype, as ``fn`` would.
        ValueError: for shapes, devices or values that do not fit, as ``fn`` would.

    Example:
        >>> q = torch.randn(2, 8, 77, 64, dtype=torch.float64)
        >>> plan = crossmodal.explain(crossmodal.attention, q, q, q, is_causal=True)
        >>> print(plan)  # doctest: +ELLIPSIS
        crossmodal.attention: ...
    """
    fn = next((ours for theirs, ours in _stand_ins.items() if theirs is fn), fn)
    planner = next((planner for function, planner in _planners.items() if function is fn or function is type(fn)), None)
    if planner is None:
        known = ", ".join(sorted(map(_public_name, _planners)))
        came = f"{fn.__module__}.{fn.__qualname__}" if hasattr(fn, "__qualname__") else type(fn).__name__
        raise TypeError(f"fn must be one of {known}, got {came}")
    module = {"module": fn} if type(fn) in _planners else {}
    bound = inspect.signature(getattr(fn, "forward", fn) if module else fn).bind(*args, **kwargs)
    bound.apply_defaults()
    return planner({**module, **bound.arguments})


def _public_name(known: Any) -> str:
    if any(known is ours for ours in _stand_ins.values()):
        return f"torch.nn.functional.{known.__name__}"
    return f"crossmodal.nn.{known.__name__}" if inspect.isclass(known) else f"crossmodal.{known.__name__}"
