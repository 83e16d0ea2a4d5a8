import numpy as np
import pytest
from scipy import stats

from fewer.core.errors import DataError
from fewer.learn.domains.tables import accuracy_table, cell, differences, latex_table, paired_difference

ACCURACIES = {
    "erm": {"a": {0: 0.5, 1: 0.6}, "b": {0: 0.7, 1: 0.8}},
    "erm + evil": {"a": {0: 0.55, 1: 0.61}, "b": {0: 0.7}},
}


@pytest.mark.parametrize("count", [2, 5, 123])
def test_the_interval_is_student_s(count: int) -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, count)
    ours = paired_difference(list(values))
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert ours.low == pytest.approx(expected.low)
    assert ours.high == pytest.approx(expected.high)


def test_sentences() -> None:
    assert "is better than erm" in paired_difference([2.0, 2.1, 2.2]).sentence("evil", "erm")
    assert "WORSE" in paired_difference([-2.0, -2.1, -2.2]).sentence("evil", "erm")
    assert "no difference" in paired_difference([-2.0, 2.1]).sentence("evil", "erm")
    assert "one run" in paired_difference([5.0]).sentence("evil", "erm")
    with pytest.raises(DataError):
        paired_difference([])


def test_tables() -> None:
    table = accuracy_table(ACCURACIES)
    assert table["erm"]["average"].mean == pytest.approx(65.0)
    assert table["erm"]["average"].error == pytest.approx(5.0)  # over seeds: 60 and 70
    assert table["erm + evil"]["average"].runs == 1  # seed 1 lacks target b
    assert cell([0.5]).text() == "50.0"
    assert sorted(differences(ACCURACIES, "erm + evil", "erm")) == pytest.approx([0.0, 1.0, 5.0])


def test_latex_escapes_and_marks_the_best() -> None:
    text = latex_table(accuracy_table({"a_b": {"x%": {0: 0.5}}, "c": {"x%": {0: 0.6}}}), "50 % & more")
    assert r"a\_b & 50.0" in text
    assert r"c & \textbf{60.0}" in text
    assert r"50 \% \& more" in text
    assert text.count("{") == text.count("}")
