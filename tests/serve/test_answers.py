import pytest

from fewer.serve.answers import ApiError, unfinished
from fewer.serve.job_store import Job


def job(idempotency: str | None = None) -> Job:
    return Job(
        id="a" * 32, owner="me", kind="image", request={}, state="running", rank=0.0, attempts=1, created=0.0,
        started=0.0, finished=None, step=0, steps=0, result=None, error=None, code=None,
        idempotency=idempotency,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "status", "kind", "again"),
    [
        ("capacity", 507, "server_error", False),
        ("storage", 507, "server_error", True),
        ("invalid_request", 400, "invalid_request_error", True),
        ("worker_died", 500, "server_error", False),
        ("group_failed", 503, "server_error", True),
        (None, 500, "server_error", True),
    ],
)
def test_a_failed_job_s_status(code: str | None, status: int, kind: str, again: bool) -> None:
    error = unfinished(job(), "failed", ("why", code))
    assert error.status == status
    assert error.body == {"error": {"message": "why", "type": kind, "param": None, "code": code}}
    assert ("x-should-retry" not in error.headers) == again


def test_what_was_cancelled_or_waits_is_not_asked_for_again_by_a_client_s_own_retries() -> None:
    assert unfinished(job(), "cancelled", None).headers["x-should-retry"] == "false"
    told = unfinished(job(), "stopping", None)
    assert told.status == 503 and "a" * 32 in told.body["error"]["message"]
    assert told.headers["x-should-retry"] == "false", "else the job would be queued twice"
    assert "x-should-retry" not in unfinished(job("key"), "stopping", None).headers


def test_errors_carry_their_time_to_come_back() -> None:
    assert ApiError(429, "full", retry_after=5).headers == {"Retry-After": "5"}
    assert ApiError(400, "no").headers == {}
