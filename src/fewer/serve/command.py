"""`fewer serve`: from options to a running server."""

import itertools
import re
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName, DtypeName
from fewer.core.errors import ConfigError, FileError
from fewer.core.files import output_folder, read_bytes
from fewer.core.progress import Progress
from fewer.serve.limits import LOCAL_NAMES, Gate

if TYPE_CHECKING:
    from fewer.serve.served_models import Served


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """One address for pictures: web page, OpenAI's images API, ComfyUI's headless subset, a queue."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    host: Annotated[str, Field(max_length=255)] = "127.0.0.1"
    """Address to listen on; any but this machine's own needs keys, or --insecure."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes a free one."""
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
    """NAME=FOLDER: a further model (pictures, classes, classifier, recommender) under a name; repeatable."""
    loras: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=FILE: an adapter (LoRA, PEFT's format) that clients may ask for by that name; may be repeated."""
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
    max_replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    """With --engine ray: as many replicas as the load needs, from --replicas to this."""
    gpus_per_replica: Annotated[float, Field(ge=0, le=64)] = 0.0
    """2 or more: each replica draws a picture on so many GPUs together (with --device cpu: processes)."""
    queue_limit: Annotated[int, Field(ge=1, le=10_000)] = 32
    """Waiting jobs; the next one is answered with 429."""
    queue_limit_each: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Waiting jobs of one key, so that none fills the queue alone; as many as wait in all if absent."""
    keep_days: Annotated[float, Field(gt=0, le=3650)] = 7.0
    """How long results and history are kept."""
    seed: Annotated[int, Field(ge=0, lt=2**62)] | None = None
    """Of the first request that names none, counted up from there; chance decides if absent."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: DtypeName = "auto"
    """Number format; `auto` is bf16 on a GPU, fp32 on a CPU."""


def serve_command(request: ServeRequest, progress: Progress) -> dict[str, object]:
    """Serves until SIGINT or SIGTERM; running jobs get 25 s, then wait for the next start.

    Raises `ConfigError` for an address that cannot be listened on, and what `app_of` raises.
    """
    gate = gate_of(request)
    signal.signal(signal.SIGTERM, _end)  # uvicorn takes it over while it serves, then raises it again
    if request.max_replicas is not None and request.engine != "ray":
        raise ConfigError("max-replicas is for --engine ray; with the local engine give --replicas alone")
    if request.engine == "ray":
        from fewer.serve.ray_app import serve_with_ray

        return serve_with_ray(request, gate, progress)
    from fewer.serve.stopping import run_until_stopped

    listener = listening(request.host, request.port)
    try:
        app = app_of(request, gate)
        where = address_of(listener)
        progress.say(f"serving at {where} (stop with Ctrl-C)")
        run_until_stopped(app, listener)
    finally:
        listener.close()
    return {"served": where}


def _end(number: int, frame: object) -> None:
    sys.exit(0)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there, before anything is loaded. Raises `ConfigError` where none can."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen on {host} port {port}: {said}; choose another --port or --host"
        ) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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
    own = (request.host, f"[{request.host.strip('[]')}]", *request.allowed_hosts)
    hosts = (*LOCAL_NAMES, *(name.lower() for name in own))
    if request.host not in ("0.0.0.0", "::", "[::]") or request.allowed_hosts:  # noqa: S104 - compared only
        return Gate(keys, hosts)
    if keys:  # a site that rebinds its name to us has none
        return Gate(keys, ())
    here = socket.gethostname().lower()
    return Gate((), (*hosts, here, f"{here}.local"), addresses=True)


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
    """The application with its queue and workers; jobs that a killed server left behind wait again.

    Raises `FileError` for models that are not there and a folder that cannot be written, `ConfigError` for a
    device that this machine lacks.
    """
    from fewer.serve.app import build_app
    from fewer.serve.job_store import JobStore
    from fewer.serve.results import Results
    from fewer.serve.uploads import Uploads
    from fewer.serve.workers import Workers

    served = served_by(request)
    group = group_of(request)
    store = JobStore(request.data / "jobs.sqlite", request.queue_limit, request.queue_limit_each)
    results = Results(output_folder(request.data / "results"))
    memory = None if request.memory_gib is None else int(request.memory_gib * 2**30)
    options = served.options() | {
        "device": request.device, "dtype": request.dtype, "memory": memory,
        "together": request.together, "results": str(results.folder.resolve()), "group": group,
    }  # fmt: skip
    uploads = Uploads((request.data / "uploads").resolve(), int(request.upload_gib * 2**30))
    workers = Workers(store, results, "fewer.serve.engine:local_engine", options, request.replicas)
    return build_app(
        store,
        results,
        workers,
        gate=gate,
        uploads=uploads,
        served=served,
        keep_seconds=request.keep_days * 86_400,
    )


def group_of(request: ServeRequest) -> int:
    """Devices that draw one picture together. Raises `ConfigError` where they are too few, or in parts."""
    from fewer.core.device import pick_device

    group = max(1, int(request.gpus_per_replica))
    if request.device != "auto":
        pick_device(request.device)  # refused here, not by every worker in turn
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


def served_by(request: ServeRequest) -> "Served":
    """What clients may ask for, by name. Raises `ConfigError`, `FileError` naming what is wrong."""
    from fewer.serve.served_models import Served, look_at

    own = "default" if request.model in (None, Path("default")) else str(request.model.resolve())
    models = {"default": look_at(own, "default")}
    for name, path in _named("models", request.models, "lungs=runs/lungs"):
        if name in models:
            raise ConfigError(f"model {name!r} is given twice; choose another name")
        models[name] = look_at(str(path.resolve()), name)
    loras: dict[str, str] = {}
    for name, path in _named("loras", request.loras, "warm=runs/warm.safetensors"):
        if name in loras:
            raise ConfigError(f"lora {name!r} is given twice; choose another name")
        if not path.exists():
            raise FileError(f"lora {name!r}: {str(path)!r} is not there", missing=True)
        loras[name] = str(path.resolve())
    return Served(models, loras, None if request.seed is None else itertools.count(request.seed))


def _named(option: str, texts: tuple[str, ...], example: str) -> Iterator[tuple[str, Path]]:
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or not path or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ConfigError(
                f"{option} takes NAME=PATH with a name of letters, digits, dots and dashes, "
                f"not {text[:80]!r}; such as --{option} {example}"
            )
        yield name, Path(path)
