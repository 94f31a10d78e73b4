"""How good answers are."""

from typing import Any

import torch
from torch import Tensor

from crossmodal._extras import require
from crossmodal.data.sample import Task
from crossmodal.train.objective import loss_per_sample


def quality_of(outputs: Tensor, labels: Tensor, task: Task) -> dict[str, float]:
    """``loss``, ``accuracy`` and what else is usual for the task.

    Classification: accuracy is the share of right answers. Multi-label: the share of samples of which every label is
    right; also ``f1``, over all decisions. Regression: the share of the variance that is explained, R squared, the mean
    over the outputs (of an output whose labels are all the same 1 or 0, right or not); also ``error``, the mean
    absolute one.

    Args:
        outputs: ``(N, outputs)`` logits or values.
        labels: ``(N,)`` int64 or ``(N, outputs)`` float32.
        task: which of the three.
    """
    quality = {"loss": loss_per_sample(outputs, labels, task).mean().item()}
    if task == "classification":
        quality["accuracy"] = (outputs.argmax(1) == labels).double().mean().item()
    elif task == "multilabel":
        said, true = outputs > 0, labels > 0.5
        right = (said & true).sum().item()
        quality["accuracy"] = (said == true).all(1).double().mean().item()
        quality["f1"] = 2 * right / max(1, int(said.sum() + true.sum()))
    else:
        residual = (outputs - labels).square().sum(0)
        spread = (labels - labels.mean(0)).square().sum(0)
        # Of labels that are all the same there is nothing to explain: right or not, as in scikit-learn.
        explained = torch.where(spread > 1e-12, 1 - residual / spread, (residual == 0).float())
        quality["accuracy"] = explained.mean().item()
        quality["error"] = (outputs - labels).abs().mean().item()
    return quality


def confusion_matrix(outputs: Tensor, labels: Tensor) -> Tensor:
    """``(classes, classes)`` int64: row the true class, column the answer."""
    count = outputs.shape[1]
    return torch.bincount(labels * count + outputs.argmax(1), minlength=count * count).view(count, count)


def report(outputs: Tensor, labels: Tensor, classes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """By class, ``precision``, ``recall``, ``f1-score`` and ``support``, by scikit-learn.

    Raises:
        MissingExtraError: when scikit-learn is not installed.
    """
    metrics = require("sklearn.metrics", distribution="scikit-learn", extra="train")
    columns = metrics.precision_recall_fscore_support(
        labels.numpy(), outputs.argmax(1).numpy(), labels=range(len(classes)), zero_division=0
    )
    names = ("precision", "recall", "f1-score", "support")
    return {
        class_name: dict(zip(names, values, strict=True))
        for class_name, *values in zip(classes, *(column.tolist() for column in columns), strict=True)
    }
