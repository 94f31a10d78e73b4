"""What a training step costs: the fused operators beside plain torch, and what the time goes to."""

import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from crossmodal.blocks.operators import use_implementation
from crossmodal.data.batch import Batch
from crossmodal.data.collate import Collate
from crossmodal.data.open import open_data
from crossmodal.encoders.bidirectional import Bidirectional
from crossmodal.encoders.convolution import ConvOverTime
from crossmodal.encoders.patches import PatchEmbedding
from crossmodal.learning.cases import Case, config_of
from crossmodal.train.learners import make_learner
from crossmodal.train.model import Model, build_model, describe_model, modalities_of

_WARM_UP = 2
# "operators" differs from "fused" by the operators alone: layers of torch run in the same way.
_WAYS = ("fused", "reference", "operators")
_LAYERS = (Bidirectional, ConvOverTime, PatchEmbedding)


def time_steps(case: Case, root: Path, *, rounds: int = 61) -> dict[str, Any]:
    """Forward, backward and step of a case's model, on one batch and one thread, in turn on both implementations.

    The reference is plain torch throughout, its GRU and convolutions too; what the operators alone bring is measured
    beside it.

    Times are those of the processor: what else runs on the machine takes no part in them.

    Args:
        case: whose model.
        root: the folder of the recorded data.
        rounds: of one step on each, in random order.

    Returns:
        ``milliseconds`` per step, the median, ``fused``, by the ``reference``, and with nothing but the ``operators``
        of the reference; ``speedup`` over the reference and ``operator_speedup`` over its operators, the medians of
        the ratios within a round; ``attention_share`` and ``encoder_share`` of a fused step; ``data_milliseconds`` to
        make the batch.
    """
    torch.set_num_threads(1)
    config = config_of(case, str(root), Path())
    splits = open_data(config.data, root, seed=case.seed)
    description = describe_model(config, splits)
    model = build_model(description, seed=case.seed)
    learner, collate = make_learner(description, config), Collate(modalities_of(description))
    start = time.process_time()
    batch = collate([splits.train[index] for index in range(config.batch_size)])
    making = time.process_time() - start
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        learner.step(model, batch).loss.backward()
        optimizer.step()

    samples: dict[str, list[float]] = {way: [] for way in _WAYS}
    order = random.Random(0)
    for number in range(_WARM_UP + rounds):
        for way in order.sample(_WAYS, len(_WAYS)):
            _use(model, way)
            start = time.process_time()
            step()
            if number >= _WARM_UP:
                samples[way].append(time.process_time() - start)
    _use(model, "fused")
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    events = profiler.key_averages()
    whole = sum(event.self_cpu_time_total for event in events)
    attention = sum(event.self_cpu_time_total for event in events if event.key.startswith("crossmodal::"))
    return {
        "milliseconds": {way: 1e3 * statistics.median(times) for way, times in samples.items()},
        "speedup": _speedup(samples["reference"], samples["fused"]),
        "operator_speedup": _speedup(samples["operators"], samples["fused"]),
        "attention_share": attention / max(whole, 1e-9),
        "encoder_share": _encoder_share(model, batch, statistics.median(samples["fused"])),
        "data_milliseconds": 1e3 * making,
        "rounds": rounds,
    }


def _use(model: Model, way: str) -> None:
    use_implementation(model, "fused" if way == "fused" else "reference")
    if way == "operators":
        for module in model.modules():
            if isinstance(module, _LAYERS):
                use_implementation(module, "fused")


def _speedup(slow: Sequence[float], fast: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


def _encoder_share(model: Model, batch: Batch, step_seconds: float) -> float:
    """Forward and backward of the encoders alone, over the time of a step."""
    times = []
    for _ in range(5):
        start = time.process_time()
        outputs = [model.encoders[name](batch.inputs[name], batch.lengths[name]).features for name in model.modalities]
        torch.stack([output.square().mean() for output in outputs]).sum().backward()
        times.append(time.process_time() - start)
    model.zero_grad()
    return statistics.median(times) / step_seconds
