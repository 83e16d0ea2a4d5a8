import math

import numpy as np
import pytest
import torch
from sklearn import metrics

from fewer.core.errors import DataError
from fewer.learn.evaluate import balanced_error, calibration_error, evaluate_probabilities


@pytest.mark.parametrize(("count", "classes"), [(123, 2), (500, 5), (37, 10)])
def test_figures_are_those_of_sklearn(count: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(count)
    labels = torch.cat(
        [torch.arange(classes), torch.randint(classes, (count - classes,), generator=generator)]
    )
    logits = torch.randn(count, classes, generator=generator) + torch.nn.functional.one_hot(labels, classes)
    # Rounded, so that equal scores occur and ties are tested.
    probabilities = ((logits.softmax(1) * 20).round() + 0.01).double()
    probabilities /= probabilities.sum(1, keepdim=True)
    figures = evaluate_probabilities(probabilities, labels)
    truth, predicted = labels.numpy(), probabilities.argmax(1).numpy()
    scores = probabilities[:, 1].numpy() if classes == 2 else probabilities.numpy()
    assert figures.accuracy == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert figures.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(truth, predicted))
    assert figures.auc == pytest.approx(metrics.roc_auc_score(truth, scores, multi_class="ovr"), abs=1e-9)
    assert figures.negative_log_likelihood == pytest.approx(metrics.log_loss(truth, probabilities.numpy()))
    np.testing.assert_array_equal(figures.confusion, metrics.confusion_matrix(truth, predicted))
    assert figures.count == count
    # Not rounded to single precision on the way.
    assert figures.accuracy == metrics.accuracy_score(truth, predicted)


def test_the_error_of_the_balanced_accuracy_is_that_of_many_draws() -> None:
    counts, shares = torch.tensor([400, 100]), torch.tensor([0.9, 0.6], dtype=torch.float64)
    pairs, generator = list(zip(counts, shares, strict=True)), torch.Generator().manual_seed(0)
    draws = torch.stack(
        [(torch.rand(2000, int(n), generator=generator) < p).double().mean(1) for n, p in pairs]
    )
    labels = torch.arange(2).repeat_interleave(counts)
    right = torch.cat([torch.arange(int(n)) < round(float(n * p)) for n, p in pairs])
    answers = torch.nn.functional.one_hot(torch.where(right, labels, 1 - labels), 2).double()
    error = balanced_error(evaluate_probabilities(answers, labels))
    assert error == pytest.approx(float(draws.mean(0).std()), rel=0.05)
    assert balanced_error(evaluate_probabilities(torch.eye(2), torch.tensor([0, 1]))) > 0.3


def test_calibration_error_is_that_of_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(400, 4, generator=generator).mul(2).softmax(1)
    labels = torch.randint(4, (400,), generator=generator)
    expected = multiclass_calibration_error(probabilities, labels, num_classes=4, n_bins=15)
    assert calibration_error(probabilities, labels) == pytest.approx(float(expected), abs=1e-5)


def test_perfect_and_always_wrong() -> None:
    labels = torch.tensor([0, 1, 2])
    right = evaluate_probabilities(torch.eye(3), labels)
    assert (right.accuracy, right.auc, right.calibration_error) == (1.0, 1.0, 0.0)
    wrong = evaluate_probabilities(torch.eye(3).roll(1, 0), labels)
    assert wrong.accuracy == 0
    assert wrong.calibration_error == 1


def test_a_class_that_does_not_occur_is_left_out_of_the_balance_and_null_in_json() -> None:
    figures = evaluate_probabilities(torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1]]), torch.tensor([0, 0]))
    assert figures.balanced_accuracy == 1
    assert math.isnan(figures.recalls[2])
    assert figures.as_dict()["auc"] is None
    assert figures.as_dict()["recalls"] == [1.0, None, None]


def test_bad_input() -> None:
    with pytest.raises(DataError, match="no labelled"):
        evaluate_probabilities(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(DataError, match="NaN"):
        evaluate_probabilities(torch.full((1, 3), torch.nan), torch.tensor([0]))
    with pytest.raises(DataError, match="the model knows"):
        evaluate_probabilities(torch.eye(3), torch.tensor([0, 1, 3]))
