"""Easier questions beside the task's own."""

from collections.abc import Mapping

from torch import Tensor, nn

from crossmodal.data.sample import Question
from crossmodal.encoders.output import EncoderOutput
from crossmodal.encoders.padding import zero_padding
from crossmodal.models.experts import mean_of_cells
from crossmodal.models.fusion.base import mean_over_real


class Questions(nn.Module):
    """Each is answered from one modality alone, by one linear map of its tokens in the common space.

    Modalities that are asked about the same thing share the map, and what means the same comes to lie near in the
    common space.

    Args:
        width: of the tokens.
        by_modality: the questions.
        encoders: of the modalities; one whose question is about cells has a ``grid`` of tokens that they divide.

    Raises:
        ValueError: when it has none, or a question is for a modality without an encoder.
    """

    def __init__(
        self, width: int, by_modality: Mapping[str, Question] | None, encoders: Mapping[str, nn.Module]
    ) -> None:
        questions = dict(by_modality or {})
        for name, question in questions.items():
            if name not in encoders:
                raise ValueError(f"auxiliary must be of {', '.join(encoders)}, got {name!r}")
            if question.cells is not None:
                _check_grid(name, getattr(encoders[name], "grid", None), question.cells)
        super().__init__()
        self.by_modality = questions
        self.maps = nn.ModuleDict({q.about: nn.Linear(width, q.classes) for q in questions.values()})

    def answers(self, tokens: Mapping[str, EncoderOutput | None], encoders: nn.ModuleDict) -> dict[str, Tensor]:
        """By modality that is there and asked, logits ``(B, classes)``, or ``(B, cells, classes)``."""
        return {
            name: self._answer(name, one, encoders[name])
            for name, one in tokens.items()
            if one is not None and name in self.by_modality
        }

    def _answer(self, name: str, tokens: EncoderOutput, encoder: nn.Module) -> Tensor:
        question = self.by_modality[name]
        if question.cells is None:
            asked = mean_over_real(zero_padding(tokens.features, tokens.lengths), tokens.lengths)
        else:
            grid: tuple[int, int] = encoder.grid  # type: ignore[assignment]
            asked = mean_of_cells(tokens.features, grid, question.cells)
        answer: Tensor = self.maps[question.about](asked)
        return answer


def _check_grid(name: str, grid: tuple[int, int] | None, cells: tuple[int, int]) -> None:
    if grid is None or grid[0] % cells[0] or grid[1] % cells[1]:
        raise ValueError(
            f"the encoder of {name} must have a grid of tokens that is a multiple of {cells} for its auxiliary "
            f"question, got {grid}; take another encoder, or do not ask: auxiliary: []"
        )
