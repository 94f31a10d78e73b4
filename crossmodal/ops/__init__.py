"""One file per public function, of its name: the function, its autograd Function, its fake."""

from crossmodal.ops import _vmap  # noqa: F401  registers the rules
from crossmodal.ops.associate import associate
from crossmodal.ops.attention import attention
from crossmodal.ops.fuse import fuse
from crossmodal.ops.softmax_weighted_sum import softmax_weighted_sum
from crossmodal.ops.varlen import attention_varlen
from crossmodal.ops.weighted_sum import weighted_sum

__all__ = ["associate", "attention", "attention_varlen", "fuse", "softmax_weighted_sum", "weighted_sum"]
