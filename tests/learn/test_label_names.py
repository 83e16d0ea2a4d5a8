import numpy as np
import pytest

from fewer.core.errors import DataError
from fewer.learn.label_names import number_labels, refuse_missing


@pytest.mark.parametrize(
    ("train", "names", "expected"),
    [
        (np.array([[7], [3], [-1]]), ("3", "7"), [1, 0, -1]),
        (np.array([7.0, 3.0, -1.0], np.float32), ("3", "7"), [1, 0, -1]),
        (np.array([10, 9, 9], np.uint16), ("9", "10"), [1, 0, 0]),
        (np.array([True, False, True]), ("False", "True"), [1, 0, 1]),
        (np.array(["b", " a", ""]), ("a", "b"), [1, 0, -1]),
        (np.array(["ö".encode(), b"a", b""]), ("a", "ö"), [1, 0, -1]),
    ],
)
def test_values_are_classes_in_their_order(train: np.ndarray, names: tuple, expected: list) -> None:
    labels, found = number_labels({"train": train}, None, "x.npz")
    assert found == names and labels["train"].tolist() == expected


def test_splits_share_their_classes_whatever_they_are_written_as() -> None:
    nobody = np.full(2, -1)
    given = {"train": np.array([b"1", b"0"]), "val": np.array([1, 0]), "test": nobody}
    labels, names = number_labels(given, None, "x.npz")
    assert names == ("0", "1") and labels["val"].tolist() == [1, 0] == labels["train"].tolist()
    assert labels["test"].tolist() == [-1, -1]


def test_class_names_number_both_forms() -> None:
    given = {"train": np.array(["dog", "cat", ""]), "test": np.array(["cat"])}
    labels, names = number_labels(given, ["dog", "cat", "owl"], "x.npz")
    assert names == ("dog", "cat", "owl") and labels["train"].tolist() == [0, 1, -1]
    assert number_labels({"train": np.array([2, -1])}, names, "x")[0]["train"].tolist() == [2, -1]


@pytest.mark.parametrize("name", ["NaN", "n/a", "<NA>", "Null"])
def test_what_stands_for_missing_is_no_class(name: str) -> None:
    with pytest.raises(DataError, match=f"here: the label '{name}'"):
        refuse_missing(name, "here")
    refuse_missing("none", "here")  # may well be a finding
    with pytest.raises(DataError, match="UTF-8"):
        number_labels({"train": np.array([b"\xff", b"a"])}, None, "x.npz")
