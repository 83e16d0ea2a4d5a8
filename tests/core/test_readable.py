from fewer.core.readable import parts_of, readable


def test_values_are_shown_on_one_line() -> None:
    assert readable(1 / 3) == "0.333333"
    assert readable([1, 2.5, "a"]) == "1, 2.5, a"
    assert readable({"a": 1, "b": [2, 3]}) == "a=1  b=2, 3"


def test_mappings_within_get_lines_of_their_own() -> None:
    assert parts_of([{"a": 1}, {"b": 2}]) == [("1", {"a": 1}), ("2", {"b": 2})]
    assert parts_of({"first": {"a": 1}}) == [("first", {"a": 1})]
    assert parts_of([1, {"a": 1}]) == [] and parts_of("text") == []
