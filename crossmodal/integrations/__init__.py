"""Other libraries' ways of calling attention, answered by ours. A library is imported when it is used, not before."""

from crossmodal.integrations import flash_attn, transformers

__all__ = ["flash_attn", "transformers"]
