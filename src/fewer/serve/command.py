"""`fewer serve`: from options to a running server."""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName, DtypeName
from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_bytes
from fewer.core.progress import Progress
from fewer.serve.limits import LOCAL_NAMES, Gate


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """One address for pictures: web page, OpenAI's images API, ComfyUI's headless subset, a queue."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    host: Annotated[str, Field(max_length=255)] = "127.0.0.1"
    """Address to listen on; any but this machine's own needs keys, or --insecure."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    api_key_file: Path | None = None
    """A file with one API key a line; each key sees only its own jobs."""
    insecure: bool = False
    """Listen to others without keys."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which the server may be reached, besides its own (against DNS rebinding)."""
    data: Path = Path("fewer-serve")
    """Folder for the queue and the results; they survive a restart."""
    model: Path | None = None
    """A model folder to serve as `default`, in place of the built-in one."""
    models: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=FOLDER: a further model (pictures, classifier or recommender) under a name; may be repeated."""
    memory_gib: Annotated[float, Field(gt=0, le=4096)] | None = None
    """What the loaded picture models of one worker may hold together; what is free if absent."""
    together: Annotated[int, Field(ge=1, le=64)] | None = None
    """Pictures of waiting requests drawn side by side; by default 8 on a GPU and 1 on a CPU."""
    upload_gib: Annotated[float, Field(gt=0, le=4096)] = 2.0
    """What the uploads of one key may hold together."""
    engine: Literal["local", "ray"] = "local"
    """`ray` runs replicas of the same app under Ray Serve."""
    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """Worker processes (local), or replicas (ray)."""
    gpus_per_replica: Annotated[float, Field(ge=0, le=64)] = 0
    """2 or more: each replica draws a picture on so many GPUs together (with --device cpu: processes)."""
    queue_limit: Annotated[int, Field(ge=1, le=10_000)] = 32
    """Waiting jobs; the next one is answered with 429."""
    keep_days: Annotated[float, Field(gt=0, le=3650)] = 7.0
    """How long results and history are kept."""
    device: DeviceName = "auto"
    dtype: DtypeName = "auto"


def serve_command(request: ServeRequest, progress: Progress) -> dict[str, object]:
    """Serves until SIGINT or SIGTERM; running jobs get 30 s, then wait for the next start."""
    gate = gate_of(request)
    signal.signal(signal.SIGTERM, _end)  # uvicorn takes it over while it serves, then raises it again
    if request.engine == "ray":
        from fewer.serve.ray_app import serve_with_ray

        return serve_with_ray(request, gate, progress)
    import uvicorn

    from fewer.serve.patience import PatientProtocol

    app = app_of(request, gate)
    where = f"http://{request.host}:{request.port}"
    progress.say(f"serving at {where} (stop with Ctrl-C)")
    config = uvicorn.Config(
        app, host=request.host, port=request.port, log_level="warning", access_log=False,
        timeout_keep_alive=10, timeout_graceful_shutdown=30, h11_max_incomplete_event_size=16_384,
        http=PatientProtocol,
    )  # fmt: skip
    uvicorn.Server(config).run()
    return {"served": where}


def _end(number: int, frame: object) -> None:
    sys.exit(0)


def gate_of(request: ServeRequest) -> Gate:
    """Who may come in. Raises `ConfigError` if others could and no key stops them."""
    keys: tuple[str, ...] = ()
    if request.api_key_file is not None:
        keys = read_keys(request.api_key_file)
    local = request.host in LOCAL_NAMES
    if not local and not keys and not request.insecure:
        raise ConfigError(
            f"host {request.host} lets other machines in, but there are no keys; "
            "give --api-key-file FILE, or --insecure if that is meant"
        )
    hosts = (*LOCAL_NAMES, request.host, *request.allowed_hosts)
    anywhere = request.host in ("0.0.0.0", "::") and not request.allowed_hosts  # noqa: S104 - compared only
    return Gate(keys, () if anywhere else hosts)


def read_keys(path: Path) -> tuple[str, ...]:
    """One key a line, at least 16 characters each. Raises `FileError`."""
    try:
        lines = read_bytes(path, 2**20).decode("ascii").split()
    except UnicodeDecodeError as error:
        raise FileError(f"{path.name!r} must hold plain ASCII keys, one a line") from error
    if not lines or min(map(len, lines)) < 16:
        raise FileError(f"{path.name!r} must hold keys of at least 16 characters, one a line")
    return tuple(lines)


def app_of(request: ServeRequest, gate: Gate):  # gives a FastAPI, imported late
    """The application with its queue and workers; jobs that a killed server left behind wait again."""
    from fewer.serve.app import build_app
    from fewer.serve.job_store import JobStore
    from fewer.serve.results import Results
    from fewer.serve.uploads import Uploads
    from fewer.serve.workers import Workers

    store = JobStore(request.data / "jobs.sqlite", request.queue_limit)
    results = Results(request.data / "results")
    models = models_of(request)
    memory = None if request.memory_gib is None else int(request.memory_gib * 2**30)
    options = {
        "models": models, "device": request.device, "dtype": request.dtype, "memory": memory,
        "together": request.together, "results": str(results.folder.resolve()), "group": group_of(request),
    }  # fmt: skip
    uploads = Uploads((request.data / "uploads").resolve(), int(request.upload_gib * 2**30))
    workers = Workers(store, results, "fewer.serve.engine:local_engine", options, request.replicas)
    return build_app(
        store,
        results,
        workers,
        gate=gate,
        uploads=uploads,
        models=models,
        keep_seconds=request.keep_days * 86_400,
    )


def group_of(request: ServeRequest) -> int:
    """Devices that draw one picture together. Raises `ConfigError` where they are too few, or in parts."""
    from fewer.core.device import pick_device

    group = max(1, int(request.gpus_per_replica))
    if group > 1 and group != request.gpus_per_replica:
        raise ConfigError(f"a picture is drawn on whole GPUs: --gpus-per-replica {group}, or {group + 1}")
    if group > 1 and request.engine == "local" and pick_device(request.device).type == "cuda":
        import torch

        here, wanted = torch.cuda.device_count(), group * request.replicas
        if wanted > here:
            raise ConfigError(
                f"{request.replicas} times {group} GPUs are {wanted}, there are {here}; use fewer of either"
            )
    return group


def models_of(request: ServeRequest) -> dict[str, str]:
    """Names that clients may ask for, and folders. Raises `ConfigError`, `FileError` naming what is wrong."""
    models = {"default": "default" if request.model is None else str(request.model.resolve())}
    for text in request.models:
        name, separator, folder = text.partition("=")
        if not separator or not name or not folder:
            raise ConfigError(f"models takes NAME=FOLDER, not {text!r}; such as --models lungs=runs/lungs")
        if name in models:
            raise ConfigError(f"model {name!r} is given twice; choose another name")
        if not Path(folder).exists():
            raise FileError(f"model {name!r}: {folder!r} is not there", missing=True)
        models[name] = str(Path(folder).resolve())
    return models
