"""The learning rate of every step: a function, not a state."""

import math


def cosine_with_warm_up(step: int, steps: int, warm_up: float) -> float:
    """What the peak learning rate is multiplied by.

    It rises in equal steps to 1, then falls to 0 with a cosine (Loshchilov and Hutter, arXiv 1608.03983).

    Args:
        step: of the run, from 0.
        steps: of the whole run.
        warm_up: share of the steps that it rises for.
    """
    rising = round(warm_up * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
