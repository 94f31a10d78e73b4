"""The kernels on a GPU: the CPU's problems, judged by the CPU's rule."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.accuracy import check
from tests.native.problems import (
    EVERY_PROBLEM,
    PROBLEMS,
    equal_links_keep_their_order,
    in_dtype,
    masked_keys_may_be_nan,
)
from tests.problems import Modality
from tests.test_random import PROBLEMS as DRAWN

pytestmark = pytest.mark.cuda

EXAMPLES = 300


@pytest.mark.parametrize("name", EVERY_PROBLEM)
def test_outputs_and_gradients_are_as_accurate_as_torch(on_gpu, name, dtype):
    check(in_dtype(EVERY_PROBLEM[name], dtype))


@pytest.mark.parametrize("name", ["PLAIN", "CAUSAL", "TRIO", "DROPOUT"])
def test_long_sequences_are_as_accurate_as_torch(on_gpu, name):
    check(replace(PROBLEMS[name], dtype=torch.bfloat16, seqlen_q=700))


# More tiles, or more heads, than a GPU holds at once.
FILLING = {
    "queued": replace(PROBLEMS["QUEUED"], batch=80, heads=8, seqlen_q=20, head_dim=72),
    "queued packed": replace(PROBLEMS["QUEUED_PACKED"], heads=90),
    "short": replace(PROBLEMS["PLAIN"], batch=270),
    "short and wide": replace(PROBLEMS["SHORT_WIDE"], batch=140),
    "short and masked": replace(PROBLEMS["SHORT_MASKED"], batch=140),
    "pooling": replace(PROBLEMS["ONE_OF_MANY"], batch=80),
    "pooling, a warp each": replace(PROBLEMS["ONE_ALONE"], batch=300),
    "pooling over many keys": replace(PROBLEMS["ONE_LONG"], modalities=(Modality(20_000),)),
    "many keys": replace(PROBLEMS["SHARED"], modalities=(Modality(9_000, torch.int64),)),
}


@pytest.mark.parametrize("problem", FILLING.values(), ids=FILLING)
def test_problems_that_fill_a_gpu_are_as_accurate_as_torch(on_gpu, problem):
    check(replace(problem, dtype=torch.bfloat16))


@pytest.mark.parametrize("seqlen_q", [4, 19], ids=["few_queries", "many_queries"])
def test_masked_keys_may_be_nan(on_gpu, dtype, seqlen_q):
    masked_keys_may_be_nan(dtype, seqlen_q)


def test_equal_links_keep_their_order(on_gpu, dtype):
    equal_links_keep_their_order(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("op", DRAWN)
def test_random_problems_are_as_accurate_as_torch(on_gpu, op):
    @seed(0)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(problem=DRAWN[op])
    def run(problem):
        check(problem)

    run()
