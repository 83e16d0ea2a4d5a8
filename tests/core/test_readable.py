import json
from pathlib import Path

import numpy as np
import torch

from fewer.core.readable import json_line, parts_of, readable


def test_json_has_numbers_as_numbers_and_no_nan() -> None:
    value = {
        "path": Path("a/b"), "loss": float("nan"), "best": np.float32("inf"), "count": np.int64(3),
        "half": np.float32(0.5), "row": (1, torch.tensor(2)), 5: [True, None], "array": np.ones(2),
    }  # fmt: skip
    assert json.loads(json_line(value)) == {
        "path": "a/b", "loss": None, "best": None, "count": 3,
        "half": 0.5, "row": [1, 2], "5": [True, None], "array": [1.0, 1.0],
    }  # fmt: skip


def test_json_is_readable_where_the_encoding_allows_it() -> None:
    assert json_line({"a": "数"}) == '{"a": "数"}'
    assert json_line({"a": "数"}, "ascii") == '{"a": "\\u6570"}'
    assert json.loads(json_line({"a": "\udcfc"})) == {"a": "\udcfc"}


def test_values_are_shown_on_one_line() -> None:
    assert readable(1 / 3) == "0.333333"
    assert readable([1, 2.5, "a"]) == "1, 2.5, a"
    assert readable({"a": 1, "b": [2, 3]}) == "a=1  b=2, 3"


def test_a_matrix_has_a_line_for_each_row_and_columns_below_each_other() -> None:
    assert parts_of([[10, 0], [3, 7]]) == [("1", "10  0"), ("2", " 3  7")]
    assert parts_of([[1, 2], [3]]) == [] == parts_of([[], []]) == parts_of([1, 2])


def test_mappings_within_get_lines_of_their_own() -> None:
    assert parts_of([{"a": 1}, {"b": 2}]) == [("1", {"a": 1}), ("2", {"b": 2})]
    assert parts_of({"first": {"a": 1}}) == [("first", {"a": 1})]
    assert parts_of([1, {"a": 1}]) == [] and parts_of("text") == []
