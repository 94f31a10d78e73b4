"""One file per operator, of its name: how a problem of it is made, and who solves it how."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from crossmodal.bench import shapes
from crossmodal.bench.case import Case
from crossmodal.bench.ops import associate, attention, fuse, overhead, softmax_weighted_sum, varlen, weighted_sum
from crossmodal.bench.shapes import Shape


class Op(NamedTuple):
    """An operator that is compared.

    Attributes:
        shapes: its problems.
        build: a problem in a dtype; raises ``UnavailableError`` where the operator is not there.
        providers: the names that ``build`` may give.
    """

    shapes: tuple[Shape, ...]
    build: Callable[[Shape, torch.dtype, int], Case]
    providers: tuple[str, ...]


OPS = {
    "attention": Op(shapes.ATTENTION, attention.build, attention.PROVIDERS),
    "fuse": Op(shapes.FUSE, fuse.build, fuse.PROVIDERS),
    "varlen": Op(shapes.VARLEN, varlen.build, varlen.PROVIDERS),
    "weighted_sum": Op(shapes.WEIGHTED_SUM, weighted_sum.build, weighted_sum.PROVIDERS),
    "softmax_weighted_sum": Op(shapes.WEIGHTED_SUM, softmax_weighted_sum.build, softmax_weighted_sum.PROVIDERS),
    "associate": Op(shapes.ASSOCIATE, associate.build, associate.PROVIDERS),
    "overhead": Op(shapes.OVERHEAD, overhead.build, overhead.PROVIDERS),
}
