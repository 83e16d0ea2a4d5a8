"""The same application as a Ray Serve deployment: many replicas behind one address.

All replicas share one folder, and so one queue: any of them answers for any job, and when one dies another
takes over what it was drawing. Ray routes requests, restarts replicas and scales them, on one machine or a
cluster. An optional extra.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fewer.core.errors import FileError
from fewer.core.progress import Progress
from fewer.serve.command import ServeRequest, app_of
from fewer.serve.limits import Gate


def serve_with_ray(request: ServeRequest, gate: Gate, progress: Progress) -> dict[str, object]:
    """Runs until interrupted. Raises `FileError` if Ray is not installed."""
    ray, serve = _ray()
    ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
    serve.start(http_options={"host": request.host, "port": request.port})
    serve.run(deployment(serve, request, gate), name="fewer", route_prefix="/")
    where = f"http://{request.host}:{request.port}"
    progress.say(f"serving {request.replicas} replicas at {where} (stop with Ctrl-C)")
    try:
        threading.Event().wait()
    finally:
        serve.shutdown()
    return {"served": where}


def deployment(
    serve: Any, request: ServeRequest, gate: Gate, build: Callable[[ServeRequest, Gate], Any] = app_of
) -> Any:
    """The bound deployment: a replica is the whole app with one worker process, and its own GPUs if asked.

    `build` runs inside the replica, so nothing but the request and the gate travels there.
    """
    # The folder is resolved here: a replica's working directory is Ray's.
    one = replace(request, data=request.data.resolve(), replicas=1)

    @serve.deployment(
        num_replicas=request.replicas,
        ray_actor_options={"num_cpus": 0.5, "num_gpus": request.gpus_per_replica},
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=30,
        max_ongoing_requests=4 * request.queue_limit,
    )
    @serve.ingress(lambda: build(one, gate))
    class Replica:
        """Everything is in the app."""

    return Replica.bind()


def _ray() -> tuple[Any, Any]:
    try:
        import ray
        from ray import serve
    except ModuleNotFoundError as error:
        raise FileError(
            "--engine ray needs Ray; install it with: pip install 'fewer[ray]'", missing=True
        ) from error
    return ray, serve
