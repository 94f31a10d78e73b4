"""Random problems over the whole argument space, on emulated CUDA kernels."""

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.accuracy import check
from tests.native.emulated import MODES
from tests.test_random import PROBLEMS

EXAMPLES = 60


@pytest.mark.parametrize("op", PROBLEMS)
def test_random_problems_are_as_accurate_as_torch(emulated_once, op):
    @seed(0)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(problem=PROBLEMS[op], mode=st.sampled_from(MODES), bits=st.integers(0, 2**32))
    def run(problem, mode, bits):
        emulated_once.set_mode(*mode, bits)
        check(problem)

    run()
