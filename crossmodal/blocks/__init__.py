"""What models are made of once every modality is in the common space: tokens of one width, projections shared by all.

:mod:`crossmodal.nn` is for the way there and for other people's models: features of any size, projections for each
modality. The layers here can run on plain torch too, which is how a model is compared with itself.
"""

from crossmodal.blocks.common_attention import CommonAttention
from crossmodal.blocks.common_block import CommonBlock
from crossmodal.blocks.common_pool import CommonPool

__all__ = ["CommonAttention", "CommonBlock", "CommonPool"]
