"""`fewer learn invariant`: train on all domains but one, beside plain training on the same batches."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fewer.core.config import validate
from fewer.core.device import DeviceName, DtypeName
from fewer.core.errors import ConfigError
from fewer.core.files import output_folder, write_bytes, write_json
from fewer.core.progress import Progress
from fewer.learn.domains.images import Domains, load_domains
from fewer.learn.domains.plan import BaseName, InvariantPlan, MaskMethod, Selection, mask_policy
from fewer.learn.domains.report import report_page
from fewer.learn.domains.sweep import Job, collect, picked, run_sweep, sweep_jobs
from fewer.learn.domains.tables import (
    Difference,
    accuracy_table,
    differences,
    latex_table,
    paired_difference,
)
from fewer.learn.networks import NetworkName
from fewer.learn.overlap import copies_between
from fewer.learn.picture_files import Fit


@dataclass(frozen=True, slots=True, kw_only=True)
class InvariantRequest:
    """Train a classifier for domains it has never seen, and say whether that beats plain training."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore

    data: Path
    """Folder domain/class/*.png, a folder of sheets like data/emoji-styles, or an MNIST file with --make."""
    target: str
    """The domain to hold out, or `all` for each in turn."""
    output: Path
    """Folder for runs, models, tables and the report."""
    make: Literal["colored-mnist", "rotated-mnist"] | None = None
    """Make domains from the digits of an MNIST file (.npz or …images-idx3-ubyte[.gz])."""
    task: Literal["group8", "subgroup", "identity"] = "group8"
    """Classes of a folder of sheets."""
    base: BaseName = "erm"
    """The objective."""
    method: MaskMethod = "evil"
    """Who decides which weights stay."""
    mode: Literal["faithful", "extended", "tmllab"] = "faithful"
    """EVIL as described, with domain gradients on both sides, or as in the released code."""
    baseline: bool = True
    """Also train densely with the same base, seeds and batches, and compare."""
    controls: tuple[MaskMethod, ...] = ()
    """Further masks to compare, such as rigl random magnitude."""
    density: float = 0.6
    """Share of kept weights in each masked layer."""
    network: NetworkName = "group-cnn"
    """The classifier."""
    network_weights: str | None = None
    """ImageNet weights for resnet-18-imagenet or resnet-50-imagenet (safetensors, torchvision's names)."""
    image_size: Annotated[int, Field(ge=8, le=512)] | None = None
    """Resize both sides of all pictures to this."""
    fit: Fit = "squeeze"
    """How what is not square (in folders) is resized: squeeze, crop (its middle) or pad (black borders)."""
    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """Optimizer steps of a run."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 24
    """Pictures of each source domain a step."""
    rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    """Adam's learning rate."""
    augment: bool = False
    """Shift and mirror the training pictures."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Runs with seed, seed + 1, ...; three or more give intervals."""
    draws: Annotated[int, Field(ge=1, le=1000)] = 1
    """Hyperparameter draws for each method; the first is the settings as given."""
    selection: Selection = "training-domain"
    """Rule that picks the draw and the checkpoint that is saved: best on the sources, on sources left out in
    turn, or on the target (oracle: the last checkpoint)."""
    settings: dict[str, object] | None = None
    """Further settings of the plan (alpha, delta, accumulation, drop, score, …); in a --config file."""
    side_by_side: Annotated[int, Field(ge=1, le=64)] = 1
    """Runs that share a GPU, each step one CUDA graph; three finish a sweep in a third of the time."""
    resume: bool = False
    """Go on where an interrupted run into the same output folder stopped."""
    seed: Annotated[int, Field(ge=0, le=2**62)] = 0
    """Decides splits, weights and batches."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: DtypeName = "auto"
    """Number format of the network; auto: bf16 on a GPU, fp32 on a CPU."""


def invariant_command(request: InvariantRequest, progress: Progress) -> dict[str, object]:
    """Writes runs/, results.json, table.tex and report.html into the output folder."""
    plans = plans_of(request)
    domains = read_domains(request)
    twice = [
        f"{copies} pictures of domain {name!r} are also in another domain: figures on it flatter"
        for name, copies in zip(domains.names, copies_between(domains.images), strict=True)
        if copies
    ]
    domains = replace(domains, notes=(*domains.notes, *twice))
    for note in domains.notes:
        progress.say(f"note: {note}")
    if request.draws == 1 and request.selection == "oracle":
        progress.say("note: with one draw --selection oracle only means the last checkpoint")
    targets = list(domains.names) if request.target == "all" else [request.target]
    seeds = [request.seed + k for k in range(request.seeds)]
    jobs = sweep_jobs(domains, plans, targets, seeds, request.draws, request.selection)
    together, output = request.side_by_side, request.output / "runs"
    if not request.resume and (earlier := [*output.glob("*/run.json"), *output.glob("*/checkpoints/step-*")]):
        runs = {path.relative_to(output).parts[0] for path in earlier}
        raise ConfigError(
            f"{request.output.name!r} holds {len(runs)} runs; "
            "add --resume to keep them and go on, or choose another --output"
        )
    output_folder(output)
    sweep = run_sweep(domains, jobs, output, resume=request.resume, side_by_side=together, progress=progress)
    order = {job: number for number, job in enumerate(jobs)}
    runs = sorted(sweep, key=lambda run: order[run[0]])
    return _answer(request, domains, runs, next(iter(plans)))


def plans_of(request: InvariantRequest) -> dict[str, InvariantPlan]:
    """Name of the table's row -> plan; the method asked for comes first, the dense base last.

    Raises `ConfigError` for unknown settings, a bad density or an impossible schedule.
    """
    shared = set(InvariantPlan.__dataclass_fields__) & set(request.__dataclass_fields__)
    extra = request.settings or {}
    twice = sorted(set(extra) & shared)
    if twice:
        raise ConfigError(f"settings repeats {', '.join(twice)}, which are options of their own")
    plan = validate(InvariantPlan, {**{name: getattr(request, name) for name in shared}, **extra})
    mask_policy(plan)
    methods = dict.fromkeys([plan.method, *request.controls, *(("none",) if request.baseline else ())])
    return {row_name(replace(plan, method=m)): replace(plan, method=m) for m in methods}


def row_name(plan: InvariantPlan) -> str:
    """`erm`, `erm + evil`, `erm + evil (extended)`."""
    if plan.method == "none":
        return plan.base
    mode = f" ({plan.mode})" if plan.method == "evil" and plan.mode != "faithful" else ""
    return f"{plan.base} + {plan.method}{mode}"


def read_domains(request: InvariantRequest) -> Domains:
    """The data that a request names."""
    if request.make is None:
        return load_domains(request.data, size=request.image_size, task=request.task, fit=request.fit)
    from fewer.learn.domains.digits import colored_mnist, read_mnist, rotated_mnist

    make = colored_mnist if request.make == "colored-mnist" else rotated_mnist
    return make(read_mnist(request.data), size=request.image_size)


def _answer(
    request: InvariantRequest, domains: Domains, runs: list[tuple[Job, dict]], ours: str
) -> dict[str, object]:
    accuracies = collect(domains, runs, request.selection)
    table = accuracy_table(accuracies)
    reference = request.base if request.base in accuracies else ours
    verdicts: dict[str, Difference] = {
        method: paired_difference(differences(accuracies, method, reference))
        for method in accuracies
        if method != reference
    }
    layers = {job.method: done["layers"] for job, done in reversed(runs) if not job.left_out}
    budget = f"{len(runs)} runs, {request.draws} draw(s) a method, {request.seeds} seed(s)"
    facts = {k: v for k, v in asdict(request).items() if k not in ("data", "output")} | {"budget": budget}
    facts["seconds"] = round(sum(done["seconds"] for _, done in runs), 1)
    output = request.output
    page = report_page(domains.name, table, verdicts, reference, layers, facts, domains.notes)
    write_bytes(output / "report.html", page.encode())
    caption = f"Accuracy on the held-out domain of {domains.name}, {request.selection} selection"
    write_bytes(output / "table.tex", latex_table(table, caption).encode())
    answer: dict[str, object] = {
        "accuracy": table[ours]["average"].mean / 100,
        "method": ours,
        "selection": request.selection,
        "table": {m: {t: asdict(c) for t, c in row.items()} for m, row in table.items()},
        "points_over_baseline": {m: d.as_dict() for m, d in verdicts.items()},
        "verdict": "; ".join(d.sentence(m, reference) for m, d in verdicts.items()),
        "budget": budget,
        "seconds": facts["seconds"],
        "output": str(output),
        "report": str(output / "report.html"),
    }
    first = next(done for job, done in runs if job.method == ours and not job.left_out)
    answer["density"] = first["figures"]["density"]
    answer["models"] = models_of(domains, runs, request.selection, output / "runs")
    write_json(output / "results.json", {**answer, "accuracies": accuracies, "layers": layers})
    return answer


def models_of(
    domains: Domains, runs: list[tuple[Job, dict]], selection: Selection, root: Path
) -> dict[str, dict[str, list[str]]]:
    """Method -> target -> folder of the picked draw's run (its `model/` is saved), one for each seed."""
    found: dict[str, dict[str, list[str]]] = {}
    chosen = picked(domains, runs, selection)
    for job, _ in runs:
        if not job.left_out and chosen[job.method, job.target, job.plan.seed][0] == job.draw:
            found.setdefault(job.method, {}).setdefault(job.target, []).append(str(job.folder(root)))
    return found
