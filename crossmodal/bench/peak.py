"""What this machine can do at most, measured: the scale on which kernels are judged."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from crossmodal._library import measure_bandwidth, measure_peak
from crossmodal.bench.case import dtype_name

# Half of the first two levels of cache on most CPUs of today, and more than any third level.
_BUFFERS = {"L1": 16 << 10, "L2": 512 << 10, "DRAM": 512 << 20}
_QUICK_DRAM = 128 << 20
_PROBES = 3
# Below two operations a byte no CPU is limited by its arithmetic.
_MEMORY_BOUND = 2.0


class Peak(NamedTuple):
    """The machine's limits with a number of threads at work.

    Attributes:
        gflops: by dtype, multiply-adds out of registers in the form that kernels of this dtype use.
        gbytes: read bandwidth, by level of memory.
    """

    gflops: dict[str, float]
    gbytes: dict[str, float]

    def limit(self, dtype: str, operations: float, num_bytes: float) -> tuple[float, str]:
        """The fewest seconds that this much work can take, and what sets them: ``"compute"`` or ``"memory"``."""
        if operations / num_bytes < _MEMORY_BOUND:
            return 1e-9 * num_bytes / self.gbytes["DRAM"], "memory"
        return 1e-9 * operations / self.gflops[dtype], "compute"


def probe(dtypes: list[torch.dtype], threads: int, *, quick: bool = False) -> Peak:
    """Measure it, all threads at once; a few seconds. The best of several probes: others can only take away."""
    with ThreadPoolExecutor(threads) as pool:

        def together(measure: Callable[[], float]) -> float:
            return max(sum(pool.map(lambda _: measure(), range(threads))) for _ in range(_PROBES))

        def gflops(name: str) -> float:
            return together(lambda: measure_peak(name))

        def gbytes(num_bytes: int) -> float:
            return together(lambda: measure_bandwidth(num_bytes))

        buffers = {**_BUFFERS, "DRAM": _QUICK_DRAM} if quick else _BUFFERS
        return Peak(
            {dtype_name(dtype): gflops(dtype_name(dtype)) for dtype in dtypes},
            {level: gbytes(size) for level, size in buffers.items()},
        )
