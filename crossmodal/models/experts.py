"""One answer per modality, and how far each is to be trusted."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crossmodal.blocks.common_pool import CommonPool
from crossmodal.blocks.operators import Implementation
from crossmodal.encoders.output import EncoderOutput


class Expert(nn.Module):
    """Answers from one modality alone.

    Args:
        width: of the tokens; a multiple of ``num_heads``.
        outputs: of the task.
        num_heads, num_queries, implementation: of the pool.
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        num_heads: int = 4,
        num_queries: int = 1,
        implementation: Implementation = "fused",
    ) -> None:
        super().__init__()
        self.pool = CommonPool(width, num_heads, num_queries, implementation)
        self.head = nn.Sequential(
            nn.LayerNorm(self.pool.out_features),
            nn.Linear(self.pool.out_features, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, outputs),
        )

    def forward(self, tokens: EncoderOutput) -> Tensor:
        """``(B, outputs)``; for a sample of length 0 what the head makes of nothing."""
        logits: Tensor = self.head(self.pool(*tokens))
        return logits


class Quality(nn.Module):
    """How good the input of one modality is, from its own tokens: a number per sample.

    It begins at 0 for every sample, and learns from whatever the number is used for.

    Args:
        width: of the tokens; a multiple of ``num_heads``.
        num_heads, implementation: of the pool.
    """

    def __init__(self, width: int, num_heads: int = 4, implementation: Implementation = "fused") -> None:
        super().__init__()
        self.pool = CommonPool(width, num_heads, implementation=implementation)
        self.to_score = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        last = self.to_score[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, tokens: EncoderOutput) -> Tensor:
        """``(B,)``."""
        score: Tensor = self.to_score(self.pool(*tokens)).squeeze(1)
        return score


def product_of_experts(answers: Sequence[Tensor], trust: Sequence[Tensor], present: Tensor) -> Tensor:
    """``sum_m present_m t_m log p_m``: right, up to a constant, where modalities are independent given the class.

    Args:
        answers: by modality, logits ``(B, classes)``.
        trust: by modality ``(B,)``, an exponent that is 1 for an expert whose probabilities are right as they are.
        present: ``(..., B, modalities)`` bool.

    Returns:
        ``(..., B, classes)``.
    """
    logs = torch.stack([logits.log_softmax(1) * t.unsqueeze(1) for logits, t in zip(answers, trust, strict=True)], 1)
    return (logs * present.unsqueeze(-1)).sum(-2)


def mean_of_cells(tokens: Tensor, grid: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """``(B, tokens, width)`` to ``(B, cells, width)``, row by row: the mean of the tokens in each cell of an image.

    Args:
        tokens: those of an image, row by row.
        grid: rows and columns of the tokens.
        cells: rows and columns of the cells.

    Raises:
        ValueError: when a token would lie in two cells.
    """
    if grid[0] % cells[0] or grid[1] % cells[1]:
        raise ValueError(f"grid must be a multiple of cells, got {grid} and {cells}")
    shape = (cells[0], grid[0] // cells[0], cells[1], grid[1] // cells[1])
    return tokens.unflatten(1, shape).mean((2, 4)).flatten(1, 2)
