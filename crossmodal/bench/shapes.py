"""The sizes that are compared: those of image, text and audio encoders as people use them."""

from typing import NamedTuple

TOPK = 8


class Shape(NamedTuple):
    """A size.

    Attributes:
        name: for people and for results files.
        batch, num_heads, seqlen_q, head_dim: of the query.
        seqlens_k: one per source.
        shortest: 0: all keys are real; else each sample has a random length in [shortest, seqlen_k].
        reduce: which summary of the weights, for ``associate``.
        quick: whether a quick run has it.
    """

    name: str
    batch: int
    num_heads: int
    seqlen_q: int
    seqlens_k: tuple[int, ...]
    head_dim: int
    shortest: int = 0
    reduce: str = ""
    quick: bool = False

    @property
    def size(self) -> tuple[int, ...]:
        return (self.batch, self.num_heads, self.seqlen_q, sum(self.seqlens_k), self.head_dim)

    @property
    def dense_operations(self) -> float:
        """Two products of (seqlen_q, seqlen_k, head_dim), two operations for each number."""
        batch, num_heads, seqlen_q, seqlen_k, head_dim = self.size
        return 4.0 * batch * num_heads * seqlen_q * seqlen_k * head_dim


def _and_batch_1(*shapes: Shape) -> tuple[Shape, ...]:
    """Each shape, and a single sample of it: what answering one request costs."""
    both = []
    for shape in shapes:
        both.append(shape)
        if shape.batch > 1:
            both.append(shape._replace(name=f"{shape.name}, batch 1", batch=1, quick=False))
    return tuple(both)


IMAGE_TO_TEXT = Shape("image to text", 32, 8, 197, (77,), 64)
TEXT_TO_IMAGE = Shape("text to image", 32, 8, 77, (197,), 64)
TINY = Shape("tiny", 128, 4, 16, (16,), 32)
POOLING = Shape("pooling", 256, 8, 1, (197,), 64)
LONG = Shape("long", 1, 8, 2048, (2048,), 64)
THREE_SOURCES = Shape("three sources", 32, 8, 77, (197, 250, 77), 64)

ATTENTION = _and_batch_1(
    IMAGE_TO_TEXT._replace(quick=True),
    TEXT_TO_IMAGE,
    Shape("text to audio", 8, 8, 32, (1500,), 64),
    Shape("square", 64, 12, 50, (50,), 64),
    Shape("head_dim 80", 4, 16, 576, (128,), 80),
    TINY._replace(quick=True),
    LONG,
    POOLING,
    IMAGE_TO_TEXT._replace(name="image to text, padded", shortest=5),
)
FUSE = (
    *_and_batch_1(THREE_SOURCES, THREE_SOURCES._replace(name="three sources, padded", shortest=5)),
    # A quick run has to end within seconds.
    THREE_SOURCES._replace(name="three sources, padded, batch 4", batch=4, shortest=5, quick=True),
)
VARLEN = _and_batch_1(
    Shape("ragged text", 32, 8, 77, (77,), 64, shortest=5, quick=True),
    Shape("ragged image to text", 32, 8, 197, (77,), 64, shortest=5),
)
WEIGHTED_SUM = _and_batch_1(
    IMAGE_TO_TEXT._replace(quick=True),
    TEXT_TO_IMAGE,
    LONG,
    POOLING,
    IMAGE_TO_TEXT._replace(name="image to text, padded", shortest=5),
)
ASSOCIATE = tuple(
    shape._replace(name=f"{shape.name}, {reduce}", reduce=reduce, quick=shape is TEXT_TO_IMAGE and reduce == "heads")
    for shape in (TEXT_TO_IMAGE, LONG)
    for reduce in ("heads", "keys", "entropy", f"top {TOPK}")
)
OVERHEAD = (Shape("one call", 1, 1, 4, (4,), 16, quick=True),)
