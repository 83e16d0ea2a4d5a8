"""The errors that all doors answer with, in OpenAI's form."""

from typing import Any

from pydantic import BaseModel

from fewer.serve.job_store import Job
from fewer.serve.limits import api_error

_STATUS = {"capacity": 507, "storage": 507, "invalid_request": 400, "group_failed": 503}


class ApiError(Exception):
    """Ends a request with a status and the error body that all doors share."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int = 0,
        hopeless: bool = False,
    ) -> None:
        """`hopeless` tells OpenAI's client not to try again by itself, which it does after 409 and 5xx."""
        super().__init__(message)
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            status, "invalid_request_error" if status < 500 else "server_error"
        )
        self.status, self.body = status, api_error(message, kind, param, code)
        self.headers = {"Retry-After": str(retry_after)} if retry_after else {}
        if hopeless:
            self.headers["x-should-retry"] = "false"


def unfinished(job: Job, kind: str, value: Any) -> ApiError:
    """The answer for a job that failed, was cancelled, or waits for the next start of the server."""
    if kind == "cancelled":
        return ApiError(409, "the job was cancelled", code="cancelled", hopeless=True)
    if kind == "stopping":
        text = f"the server is being stopped; job {job.id} is done after its next start"
        return ApiError(503, text, None, "stopping", 5, hopeless=job.idempotency is None)
    message, code = value
    text = message or "the picture could not be drawn"
    hopeless = code in ("capacity", "worker_died")
    return ApiError(_STATUS.get(code or "", 500), text, code=code, hopeless=hopeless)


def body_schema(model: type[BaseModel]) -> dict:
    """For OpenAPI: the body is read by `validated`, which FastAPI cannot see."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
