"""How good a model is on given batches."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from crossmodal.data.batch import Batch


class Evaluation(NamedTuple):
    """Predictions and truth.

    Attributes:
        log_probabilities: ``(N, classes)`` float32.
        labels: ``(N,)`` int64.
    """

    log_probabilities: Tensor
    labels: Tensor

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return nn.functional.nll_loss(self.log_probabilities, self.labels).item()

    @property
    def accuracy(self) -> float:
        """Share of samples whose likeliest class is the true one."""
        return (self.log_probabilities.argmax(1) == self.labels).float().mean().item()


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
    """Run ``model`` in evaluation mode over all batches; its mode is restored.

    Raises:
        ValueError: when there are no batches.
    """
    training = model.training
    model.eval()
    rows, labels = [], []
    for batch in batches:
        rows.append(model(batch.inputs, batch.lengths).logits.float().log_softmax(1))
        labels.append(batch.labels)
    model.train(training)
    if not rows:
        raise ValueError("batches must hold at least one batch, got none")
    return Evaluation(torch.cat(rows), torch.cat(labels))
