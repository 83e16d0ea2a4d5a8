import pytest

from fewer.core.errors import CapacityError, ConfigError, DataError, FewerError, FileError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (FileError("x"), 2),
        (DataError("x"), 3),
        (FileError("x", missing=True), 4),
        (CapacityError("x"), 5),
    ],
)
def test_each_error_has_the_exit_code_of_the_contract(error: FewerError, code: int) -> None:
    assert error.exit_code == code
    assert isinstance(error, ValueError)
