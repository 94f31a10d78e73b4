"""The same functions in plain torch: the definition, the fall-back where no kernel fits, the opponent in benchmarks.

Same signatures, same errors, every device and dtype that torch has. Nothing here calls SDPA.
"""

from crossmodal.reference.associate import associate
from crossmodal.reference.attention import attention
from crossmodal.reference.fuse import fuse
from crossmodal.reference.softmax_weighted_sum import softmax_weighted_sum
from crossmodal.reference.varlen import attention_varlen
from crossmodal.reference.weighted_sum import weighted_sum

__all__ = ["associate", "attention", "attention_varlen", "fuse", "softmax_weighted_sum", "weighted_sum"]
