"""Measures against values worked out by hand, and against scikit-learn."""

import pytest
import torch

from crossmodal.train.measures import quality_of, report

metrics = pytest.importorskip("sklearn.metrics", reason="needs the extra train")


def test_classes_may_have_any_names():
    outputs, labels = torch.randn(50, 3), torch.randint(3, (50,))
    names = ("accuracy", "macro avg", "weighted avg")
    wanted = metrics.classification_report(
        labels, outputs.argmax(1), labels=range(3), target_names=["a", "b", "c"], output_dict=True, zero_division=0
    )
    assert list(report(outputs, labels, names).values()) == [pytest.approx(wanted[name]) for name in "abc"]


def test_class_that_nobody_has_or_answers_has_zeros():
    found = report(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 1, 1]), ("a", "b", "c"))
    assert found["c"] == {"precision": 0, "recall": 0, "f1-score": 0, "support": 0}
    assert found["a"]["precision"] == 0.5 and found["b"]["recall"] == 0.5


@pytest.mark.parametrize("constant", [False, True])
def test_explained_share_of_regression_is_that_of_scikit_learn(constant):
    labels = torch.randn(20, 2)
    if constant:
        labels[:, 1] = 0.7
    outputs = labels + 0.1 * torch.randn(20, 2)
    wanted = metrics.r2_score(labels.double(), outputs.double())
    assert quality_of(outputs, labels, "regression")["accuracy"] == pytest.approx(wanted, abs=1e-4)
    assert quality_of(labels, labels, "regression")["accuracy"] == 1
