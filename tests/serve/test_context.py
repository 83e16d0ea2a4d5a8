import pytest

from fewer.serve.context import ApiError, failure


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("capacity", 507, "server_error"),
        ("invalid_request", 400, "invalid_request_error"),
        ("worker_died", 500, "server_error"),
        (None, 500, "server_error"),
    ],
)
def test_a_failed_job_s_status(code: str | None, status: int, kind: str) -> None:
    error = failure(("why", code))
    assert error.status == status
    assert error.body == {"error": {"message": "why", "type": kind, "param": None, "code": code}}


def test_errors_carry_their_time_to_come_back() -> None:
    assert ApiError(429, "full", retry_after=5).headers == {"Retry-After": "5"}
    assert ApiError(400, "no").headers == {}
