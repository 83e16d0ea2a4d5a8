"""The checks of shapes and types that the import hook of jaxtyping asks for, made once a call.

jaxtyping's own frame binds every call's arguments by name and checks them twice, for its messages: a quarter
of the time of the tests. Here beartype checks every annotation once, and a function that speaks of shapes
gets a scope in which one name of a dimension has one value.
"""

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial, wraps
from types import FunctionType
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped


def install() -> None:
    """What the import hook writes above every function and class becomes `checked`."""
    jaxtyping.jaxtyped = checked


def checked(function: Any = None, *, typechecker: Callable) -> Any:
    if function is None:
        return partial(checked, typechecker=typechecker)
    if inspect.isclass(function):
        if is_dataclass(function) and isinstance(vars(function).get("__init__"), FunctionType):
            function.__init__ = checked(function.__init__, typechecker=typechecker)
        return function
    if not isinstance(function, FunctionType) or _goes_on(function):
        return jaxtyped(function, typechecker=typechecker)
    hints = list(function.__annotations__.values())
    shapes = [shape for hint in hints for shape in _shapes(hint)]
    if any(isinstance(hint, str) for hint in hints) or any("{" in shape.dim_str for shape in shapes):
        return jaxtyped(function, typechecker=typechecker)  # it needs the names, or the values of arguments
    inner = beartype(conf=BeartypeConf(violation_type=TypeCheckError))(function)
    return _in_a_scope(inner) if shapes else inner


def _in_a_scope(function: Callable) -> Callable:
    @wraps(function)
    def scoped(*arguments: object, **options: object) -> object:
        __tracebackhide__ = True
        with jaxtyped("context"):
            return function(*arguments, **options)

    return scoped


def _goes_on(function: Callable) -> bool:
    """Its body runs after the call: jaxtyping knows what to do with it."""
    kinds = inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction
    return any(kind(function) for kind in kinds)


def _shapes(hint: object) -> list[Any]:
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return [hint]
    parts = hint if isinstance(hint, list) else get_args(hint)  # a list: the arguments of a Callable
    return [shape for part in parts for shape in _shapes(part)]
