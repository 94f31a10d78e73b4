"""One process, or several that train together: device, precision, gradients in common."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import distribute_tensor

from crossmodal._extras import require
from crossmodal.nn._products import has_instructions
from crossmodal.train.config import TrainConfig

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Processes:
    """This process among those that ``torchrun`` started, by ``accelerate``; alone without it.

    Args:
        config: ``device``, ``precision`` and ``parallel`` are used.

    Attributes:
        rank, count: which process of how many.
        device: where the model is.

    Raises:
        MissingExtraError: when accelerate is not installed.
    """

    def __init__(self, config: TrainConfig) -> None:
        accelerate = require("accelerate", distribution="accelerate", extra="train")
        # Where there is nothing but CPUs, accelerate has to be told, or its processes do not find each other.
        on_cpu = config.device == "cpu" or not torch.accelerator.is_available()
        self._accelerator = accelerate.Accelerator(cpu=on_cpu)
        # Not of the accelerator: it has one precision as long as the process lives, which may train again in another.
        self._precision = config.precision
        self._parallel = config.parallel
        self.rank: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device

    @property
    def is_first(self) -> bool:
        """Whether this one writes files and prints."""
        return self.rank == 0

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model on its device; with several processes, wrapped so that they share gradients, or weights too."""
        model = model.to(self.device)
        if self.count == 1:
            return model
        if self._parallel == "fsdp":
            from torch.distributed.fsdp import fully_shard

            fully_shard(model)
            return model
        # The accelerator's own wrapping would autocast forward once more, and its outputs to float32.
        devices = None if self.device.type == "cpu" else [self.device]
        return nn.parallel.DistributedDataParallel(model, device_ids=devices)

    @property
    def remark(self) -> str:
        """What someone who waits for this device and precision should know; empty for nothing."""
        if self.device.type != "cpu" or self._precision == "no" or has_instructions(_DTYPES[self._precision]):
            return ""
        return f"this CPU has no instructions for {self._precision}: a step may take several times as long as without"

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the config."""
        if self._precision == "no":
            return nullcontext()
        return torch.autocast(self.device.type, _DTYPES[self._precision])

    def without_synchronising(self, model: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
        """Gradients stay with each process, where ``wanted``: those of a step's last batch bring all together."""
        if not wanted or not isinstance(model, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return model.no_sync()

    def summed(self, values: dict[str, float]) -> dict[str, float]:
        """The sums over all processes."""
        if self.count == 1:
            return values
        tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return dict(zip(values, tensor.tolist(), strict=True))

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """End what the processes have in common; from here on each goes its own way."""
        self._accelerator.end_training()


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def whole_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and the optimizer's state, by the weights' names, gathered from all processes; only the first has
    them."""
    return get_model_state_dict(model, options=_WHOLE), get_optimizer_state_dict(model, optimizer, options=_WHOLE)


def whole_tensor(value: Tensor) -> Tensor:
    """Gathered from all processes where they share it."""
    gather = getattr(value, "full_tensor", None)
    return value if gather is None else gather()


def shared_as(value: Tensor, whole: Tensor) -> Tensor:
    """The inverse: of a tensor that every process has whole, what this one keeps where they share ``value``."""
    mesh = getattr(value, "device_mesh", None)
    if mesh is None:
        return whole
    shared: Tensor = distribute_tensor(whole.to(value.device), mesh, value.placements)  # type: ignore[attr-defined]
    return shared


def load_whole_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, weights: dict[str, Any], moments: dict[str, Any]
) -> None:
    """The inverse; every process gives the whole state."""
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, weights, options=options)
    set_optimizer_state_dict(model, optimizer, moments, options=options)
