"""Tells from an embedding which modality it came from: the adversary of alignment."""

from torch import Tensor, nn


class ModalityDiscriminator(nn.Module):
    """A multilayer perceptron.

    Args:
        width: of the embeddings.
        outputs: how many modalities; 1 makes it a critic, whose answer is a score without bounds.
        hidden: units of each of the two hidden layers.
    """

    def __init__(self, width: int, outputs: int = 2, hidden: int = 128) -> None:
        super().__init__()
        self.outputs = outputs
        # Smooth, and without normalisation over the batch: a gradient penalty differentiates twice, sample by sample.
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, outputs)
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """``(..., width)`` to logits ``(..., outputs)``."""
        scores: Tensor = self.layers(embeddings)
        return scores
