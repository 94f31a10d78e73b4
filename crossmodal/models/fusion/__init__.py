"""The forms of fusion, by name."""

from crossmodal.models.fusion.base import Biases, Form, Fused, Fusion
from crossmodal.models.fusion.bottleneck import BottleneckFusion
from crossmodal.models.fusion.cross import CrossFusion
from crossmodal.models.fusion.pooled import ConcatFusion, GatedFusion, LowRankFusion
from crossmodal.models.fusion.queries import QueryFusion
from crossmodal.models.fusion.source_form import SourceFusion

FUSIONS: dict[str, type[Fusion]] = {
    "queries": QueryFusion,
    "concat": ConcatFusion,
    "gated": GatedFusion,
    "source": SourceFusion,
    "cross": CrossFusion,
    "bottleneck": BottleneckFusion,
    "low_rank": LowRankFusion,
}


def build_fusion(name: str, form: Form) -> Fusion:
    """A fusion of fresh weights.

    Raises:
        ValueError: for an unknown name, or a form that cannot be: a width that the heads do not share evenly, say.
    """
    if name not in FUSIONS:
        raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {name!r}")
    make = FUSIONS[name]
    return make(form)


__all__ = ["FUSIONS", "Biases", "Form", "Fused", "Fusion", "build_fusion"]
