"""The same application as a Ray Serve deployment: many replicas behind one address.

All replicas share one folder, and so one queue: any of them answers for any job, and when one dies another
takes over what it was drawing. Ray routes requests, restarts replicas and scales them, on one machine or a
cluster. An optional extra.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fewer.core.config import validate
from fewer.core.errors import ConfigError, FileError
from fewer.core.progress import Progress
from fewer.serve.command import ServeRequest, app_of, gate_of
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
    one = replace(request, data=request.data.resolve(), replicas=1, max_replicas=None)

    @serve.deployment(
        **_replicas(request),
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


def _replicas(request: ServeRequest) -> dict[str, Any]:
    """So many replicas, or as many as the open requests need: about two each, one drawn and one waiting.

    Raises `ConfigError` when the most is less than the least.
    """
    if request.max_replicas is None:
        return {"num_replicas": request.replicas}
    if request.max_replicas < request.replicas:
        raise ConfigError(
            f"max-replicas {request.max_replicas} is less than --replicas {request.replicas}; give more"
        )
    scaling = {
        "min_replicas": request.replicas, "max_replicas": request.max_replicas,
        "initial_replicas": request.replicas, "target_ongoing_requests": 2,
        "upscale_delay_s": 5, "downscale_delay_s": 300,  # a model takes its time to load
    }  # fmt: skip
    return {"autoscaling_config": scaling}


def application(settings: dict[str, Any]) -> Any:
    """For `serve run` and `serve deploy`, whose files name it: `settings` are the options of `fewer serve`.

    Raises `ConfigError` for one that is not known, or when keys are missing where others are let in.
    """
    _, serve = _ray()
    request = validate(ServeRequest, {**settings, "engine": "ray"})
    # Ray's proxies listen, on every node: what it is told as host is what they are asked by.
    return deployment(serve, request, gate_of(request))


def _ray() -> tuple[Any, Any]:
    try:
        import ray
        from ray import serve
    except ModuleNotFoundError as error:
        raise FileError(
            "--engine ray needs Ray; install it with: pip install 'fewer[ray]'", missing=True
        ) from error
    return ray, serve
