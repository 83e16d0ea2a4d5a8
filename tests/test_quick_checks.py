"""The checks that every test runs under refuse what they should: shapes, types, results, fields."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from tests.quick_checks import checked


def guard(thing: Callable) -> Callable:
    from beartype import beartype

    return checked(typechecker=beartype)(thing)


def product(
    first: Float[Tensor, "rows inner"], second: Float[Tensor, "inner columns"]
) -> Float[Tensor, "rows columns"]:
    return first @ second


def test_one_name_of_a_dimension_has_one_value_in_a_call_and_another_in_the_next() -> None:
    good = guard(product)
    assert good(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    assert good(torch.ones(5, 1), torch.ones(1, 2)).shape == (5, 2)
    for first, second in ((torch.ones(2, 3), torch.ones(4, 3)), (torch.ones(2), torch.ones(2, 2))):
        with pytest.raises(TypeCheckError, match=r"type hint|Type-check"):
            good(first, second)


def test_a_scope_ends_with_its_call_also_where_calls_are_nested() -> None:
    @guard
    def inner(x: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return x

    @guard
    def outer(x: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        inner(torch.ones(len(x) + 1))
        return x if len(x) < 5 else x[1:]

    assert len(outer(torch.ones(3))) == 3
    with pytest.raises(TypeCheckError, match="type hint"):
        outer(torch.ones(7))


def test_results_plain_types_and_dimensions_told_by_an_argument_are_checked() -> None:
    @guard
    def wrong(x: int) -> str:
        return x  # type: ignore[return-value]

    @guard
    def told(size: int, x: Tensor) -> Float[Tensor, "{size}"]:
        return x

    with pytest.raises(TypeCheckError, match="type hint"):
        wrong(1)
    assert len(told(2, torch.ones(2))) == 2
    with pytest.raises(TypeCheckError, match="Type-check"):
        told(2, torch.ones(3))


def test_fields_and_generators_are_checked() -> None:
    @guard
    @dataclass(frozen=True, slots=True)
    class Pair:
        left: Float[Tensor, "n"]
        right: Float[Tensor, "n"]

    @guard
    def count(to: int) -> Iterator[int]:
        yield from range(to)

    assert len(Pair(torch.ones(2), torch.ones(2)).left) == 2
    with pytest.raises(TypeCheckError, match="type hint"):
        Pair(torch.ones(2), torch.ones(3))
    assert list(count(2)) == [0, 1]
    with pytest.raises(TypeCheckError, match=r"Type-check|type hint"):
        list(count("2"))
