"""Many runs that can be stopped: targets x seeds x methods x hyperparameter draws, one JSON file each.

What a finished run left is not run again. Selection among draws follows DomainBed's three rules.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_json, safe_name, write_bytes, write_json
from fewer.core.progress import Progress, SilentProgress
from fewer.learn.domains.images import Domains
from fewer.learn.domains.plan import InvariantPlan
from fewer.learn.domains.protocol import (
    Record,
    Selection,
    best_record,
    drawn_plan,
    reported_accuracy,
    run_score,
)
from fewer.learn.domains.run import InvariantResult, invariant
from fewer.learn.domains.side_by_side import Wanted, invariant_side_by_side

MOST_LETTERS = 40  # of a domain's name in the name of a folder
Accuracies = dict[str, dict[str, dict[int, float]]]
"""Method -> target -> seed -> accuracy in 0 .. 1."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a sweep."""

    method: str
    """Name of the row in the table, such as "erm + evil"."""
    plan: InvariantPlan
    """With seed and draw already applied."""
    target: str
    draw: int
    left_out: tuple[str, ...] = ()

    def folder(self, root: Path) -> Path:
        """Where its files are."""
        domains = [_folder_part(name) for name in (self.target, *self.left_out)]
        parts = [*domains, safe_name(self.method), f"seed{self.plan.seed}", f"draw{self.draw}"]
        return root / "--".join(parts)


def _folder_part(domain: str) -> str:
    """Two domains never share it: +90% and -90% would both be 90, two names in Chinese both nothing, and two
    long ones the same beginning."""
    safe = safe_name(domain)[:MOST_LETTERS]
    return safe if safe == domain else f"{safe}-{hashlib.sha256(domain.encode()).hexdigest()[:6]}"


def sweep_jobs(
    domains: Domains,
    plans: dict[str, InvariantPlan],
    targets: Sequence[str],
    seeds: Sequence[int],
    draws: int,
    selection: Selection,
) -> list[Job]:
    """All runs, so ordered that whole comparisons finish early: seed, target, draw, then method; those that
    leave out one more domain come before the run whose checkpoint they pick. `selection` enters the plans."""
    jobs = []
    for seed in seeds:
        for target in targets:
            domains.index(target)
            others: list[tuple[str, ...]] = [()]
            if selection == "leave-one-out":
                others = [*((name,) for name in domains.names if name != target), ()]
            for draw in range(draws):
                for method, plan in plans.items():
                    drawn = replace(drawn_plan(plan, draw), seed=seed, selection=selection)
                    jobs += [Job(method, drawn, target, draw, left) for left in others]
    if selection == "leave-one-out" and len(domains.names) < 4:
        raise ConfigError(
            f"leave-one-out selection holds out two domains and trains on at least two; {len(domains.names)} "
            "domains are given, 4 are needed; try --selection training-domain"
        )
    return jobs


def run_sweep(
    domains: Domains,
    jobs: Sequence[Job],
    root: Path,
    *,
    resume: bool = False,
    checkpoints: bool = True,
    models: bool = True,
    side_by_side: int = 1,
    progress: Progress | None = None,
) -> Iterator[tuple[Job, dict]]:
    """Runs what is not there yet and yields every job with its finished `run.json`, in order.

    Without `resume` finished runs are run again; without `checkpoints` an interrupted one starts afresh. Each
    job's folder holds `model/` (unless `models` is off), `run.json` and `results.jsonl` (DomainBed's form).
    With `side_by_side` above 1 so many runs share the device; there are no checkpoints then, and the runs
    come in the order in which they end.
    """
    progress, pictures = progress or SilentProgress(), domains.fingerprint()
    if side_by_side > 1:
        yield from _side_by_side(domains, jobs, root, resume, models, side_by_side, progress, pictures)
        return
    inner = _Inner()
    for number, job in enumerate(jobs):
        folder = job.folder(root)
        done = finished(folder, job, pictures) if resume else None
        if done is None:
            progress.say(f"run {number + 1} of {len(jobs)}: {folder.name}")
            result = invariant(
                domains,
                job.target,
                plan=job.plan,
                left_out=job.left_out,
                inner=inner.of(job),
                checkpoints=folder / "checkpoints" if checkpoints else None,
                resume=resume and checkpoints,
                progress=progress,
            )
            done = _write(folder, domains, job, result, models, pictures)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # `run.json` is what resuming needs now
        inner.note(job, done)
        yield job, done


class _Inner:
    """Records of the runs that leave out one more domain, for the run whose checkpoint they pick."""

    def __init__(self) -> None:
        self.known: dict[Job, dict[str, Sequence[Record]]] = {}

    def note(self, job: Job, done: dict) -> None:
        if job.left_out:
            self.known.setdefault(replace(job, left_out=()), {})[job.left_out[0]] = done["records"]

    def of(self, job: Job) -> dict[str, Sequence[Record]] | None:
        return self.known.get(job)


def _side_by_side(
    domains: Domains,
    jobs: Sequence[Job],
    root: Path,
    resume: bool,
    models: bool,
    lanes: int,
    progress: Progress,
    pictures: str,
) -> Iterator[tuple[Job, dict]]:
    left, inner = [], _Inner()
    for job in jobs:
        done = finished(job.folder(root), job, pictures) if resume else None
        if done is None:
            left.append(job)
        else:
            inner.note(job, done)
            yield job, done
    for part in ([job for job in left if job.left_out], [job for job in left if not job.left_out]):
        wanted = [Wanted(job.target, job.plan, job.left_out, inner.of(job)) for job in part]
        for number, result in invariant_side_by_side(domains, wanted, lanes, progress):
            job = part[number]
            done = _write(job.folder(root), domains, job, result, models, pictures)
            inner.note(job, done)
            yield job, done


def finished(folder: Path, job: Job, pictures: str | None = None) -> dict | None:
    """The `run.json` of a finished run with the same plan. Raises `ConfigError` when the plan differs or,
    where `pictures` (a fingerprint) is given, the data."""
    path = folder / "run.json"
    if not path.exists():
        return None
    found = read_json(path)
    mine = json.loads(json.dumps(asdict(job.plan)))
    theirs = found.get("plan")
    if not isinstance(theirs, dict) or not isinstance(found.get("records"), list):
        raise FileError(f"{folder.name}/run.json is no finished run; delete it or give another --output")
    if (held := [found.get("target"), found.get("left_out")]) != [job.target, list(job.left_out)]:
        raise ConfigError(f"{folder.name} holds a run of other domains ({held[0]}); give another --output")
    theirs = {"selection": "training-domain", **theirs}
    odd = [name for name in mine if name != "device" and mine[name] != theirs.get(name)]
    if odd:
        raise ConfigError(
            f"{folder.name} was run with {odd[0]} = {theirs.get(odd[0])}, not {mine[odd[0]]}; "
            "resume with the same settings or give another --output"
        )
    if pictures is not None and found.get("pictures", pictures) != pictures:
        raise ConfigError(
            f"{folder.name} was run on other pictures; resume with the data it was started with or give "
            "another --output"
        )
    return found


def _write(
    folder: Path, domains: Domains, job: Job, result: InvariantResult, models: bool, pictures: str
) -> dict:
    if models:
        result.save(folder / "model")
    held = [domains.index(name) for name in (job.target, *job.left_out)]
    write_bytes(folder / "results.jsonl", domainbed_lines(domains, job, held, result).encode())
    done = {
        "method": job.method,
        "target": job.target,
        "left_out": list(job.left_out),
        "draw": job.draw,
        "plan": json.loads(json.dumps(asdict(job.plan))),
        "figures": result.figures,
        "records": result.records,
        "layers": [layer.as_dict() for layer in result.layers],
        "updates": result.updates,
        "seconds": result.seconds,
        "pictures": pictures,
    }
    write_json(folder / "run.json", done)
    return done


def domainbed_lines(domains: Domains, job: Job, held: Sequence[int], result: InvariantResult) -> str:
    """One JSON object an evaluation, with the keys that DomainBed's collect_results reads."""
    plan = job.plan
    arguments = {
        "algorithm": job.method,
        "dataset": domains.name,
        "test_envs": list(held),
        "trial_seed": plan.seed,
        "hparams_seed": job.draw,
        "seed": plan.seed,
        "steps": plan.steps,
        "holdout_fraction": plan.holdout,
        "task": "domain_generalization",
    }
    pictures = min(len(domains.images[env]) for env in range(len(domains.names)) if env not in held)
    lines = []
    for record in result.records:
        line: dict[str, object] = {"args": arguments, "hparams": asdict(plan), **record}
        line["step"] = int(record["step"])
        line["epoch"] = record["step"] * plan.batch / pictures
        lines.append(json.dumps(line))
    return "\n".join(lines) + "\n"


def collect(domains: Domains, runs: Sequence[tuple[Job, dict]], selection: Selection) -> Accuracies:
    """For each method, target and seed the accuracy of the draw that the rule picks."""
    accuracies: Accuracies = {}
    for (method, target, seed), (_, accuracy) in picked(domains, runs, selection).items():
        accuracies.setdefault(method, {}).setdefault(target, {})[seed] = accuracy
    return accuracies


def picked(
    domains: Domains, runs: Sequence[tuple[Job, dict]], selection: Selection
) -> dict[tuple[str, str, int], tuple[int, float]]:
    """(method, target, seed) -> the draw that the rule picks, and its accuracy."""
    groups: dict[tuple[str, str, int], dict[int, dict[tuple[str, ...], list]]] = {}
    for job, done in runs:
        key = (job.method, job.target, job.plan.seed)
        groups.setdefault(key, {}).setdefault(job.draw, {})[job.left_out] = done["records"]
    found: dict[tuple[str, str, int], tuple[int, float]] = {}
    for key, draws in groups.items():
        number, score = domains.index(key[1]), float("-inf")
        for draw, runs_of_draw in draws.items():
            inner = {domains.index(left[0]): run for left, run in runs_of_draw.items() if left}
            value = run_score(runs_of_draw[()], number, selection, inner)
            if value > score or key not in found:
                record = best_record(runs_of_draw[()], [number], selection, inner)
                score, found[key] = value, (draw, reported_accuracy(record, number))
    return found
