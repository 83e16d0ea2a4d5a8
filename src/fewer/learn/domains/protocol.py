"""DomainBed's protocol (arXiv 2007.01434): splits, hyperparameter draws, and three rules of model selection.

A record is what one evaluation leaves behind: `step` and, for each domain number, `env<i>_in_acc` and
`env<i>_out_acc`. A run is its records in order of steps. All functions here are pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from fewer.core.device import seeded
from fewer.core.errors import DataError
from fewer.learn.domains.bases import PUBLISHED_STEPS
from fewer.learn.domains.images import Domains
from fewer.learn.domains.plan import InvariantPlan, Selection

ACCUMULATIONS = (1, 5, 10, 15, 20)
FIRST_MASKS = ("random", "sensitivity", "fisher")
Record = Mapping[str, float]
Rows = Int64[Tensor, " _"]


def split_domain(domains: Domains, env: int, holdout: float, seed: int) -> tuple[Rows, Rows]:
    """Rows of domain `env` for training ("in") and for validation ("out"), seeded by (seed, env).

    Where objects appear in several domains they are split by object, with one draw for all domains, and
    unseen objects are in neither part. Raises `DataError` when a part would be empty.
    """
    count = len(domains.images[env])
    if domains.objects is None:
        order = torch.randperm(count, generator=seeded(seed, 51, env))
        cut = int(holdout * count)
        inside, outside = order[cut:].sort().values, order[:cut].sort().values
    else:
        known = domains.objects[env].unique()
        drawn = known[torch.randperm(len(known), generator=seeded(seed, 51))[: int(holdout * len(known))]]
        held = torch.isin(domains.objects[env], drawn)
        usable = torch.ones(count, dtype=torch.bool) if domains.unseen is None else ~domains.unseen[env]
        inside = torch.nonzero(usable & ~held).flatten()
        outside = torch.nonzero(usable & held).flatten()
    if len(inside) == 0 or len(outside) == 0:
        raise DataError(
            f"domain {domains.names[env]!r} has {count} pictures: holdout {holdout:g} leaves one part empty"
        )
    return inside, outside


def source_validation(record: Record, held: Sequence[int]) -> float:
    """Mean "out" accuracy over the source domains: all but those in `held`."""
    sources = [
        value
        for key, value in record.items()
        if key.endswith("_out_acc") and int(key[3 : -len("_out_acc")]) not in held
    ]
    if not sources:
        raise DataError("the record holds no accuracy of a source domain")
    return float(np.mean(sources))


def best_record(
    run: Sequence[Record],
    held: Sequence[int],
    rule: Selection,
    left_out: Mapping[int, Sequence[Record]] | None = None,
) -> Record:
    """The checkpoint of one run that a rule picks; `held` are the domains that it did not train on.

    training-domain: best source validation (the first of equals), and of a masked run only among
    checkpoints that have a mask (`masked` is not 0), for the result is meant to be sparse. oracle: the last
    checkpoint, for the target's labels may choose between runs but not stop one early. leave-one-out: the
    step at which runs of the same settings that left out one more domain (`left_out`: domain -> run) do best
    on that domain.
    """
    if not run:
        raise DataError("the run holds no evaluation")
    if rule == "oracle":
        return max(run, key=lambda record: record["step"])
    eligible = [record for record in run if record.get("masked", 1.0)] or run
    if rule == "leave-one-out":
        scores = _left_out_scores(eligible, left_out)
        return max((one for one in eligible if one["step"] in scores), key=lambda one: scores[one["step"]])
    return max(eligible, key=lambda record: source_validation(record, held))


def _left_out_scores(
    run: Sequence[Record], left_out: Mapping[int, Sequence[Record]] | None
) -> dict[float, float]:
    """Step -> mean accuracy on the "in" part of each source domain by the run that left it out, as DomainBed
    has it; of the steps that all runs evaluated."""
    if not left_out:
        raise DataError("leave-one-out selection needs runs that leave out a source domain as well")
    by_step = {
        env: {record["step"]: record[f"env{env}_in_acc"] for record in inner}
        for env, inner in left_out.items()
    }
    shared = [one["step"] for one in run if all(one["step"] in known for known in by_step.values())]
    if not shared:
        raise DataError("the runs that leave out a source domain were evaluated at other steps")
    return {step: float(np.mean([known[step] for known in by_step.values()])) for step in shared}


def run_score(
    run: Sequence[Record],
    target: int,
    rule: Selection,
    left_out: Mapping[int, Sequence[Record]] | None = None,
) -> float:
    """What a rule compares runs by, at the checkpoint that it picks: source validation, target "out" accuracy
    (oracle), or the mean accuracy on each source domain by the run that left it out too."""
    record = best_record(run, [target], rule, left_out)
    if rule == "leave-one-out":
        return _left_out_scores([record], left_out)[record["step"]]
    return record[f"env{target}_out_acc"] if rule == "oracle" else source_validation(record, [target])


def reported_accuracy(record: Record, target: int) -> float:
    """The figure of the table: new objects where there are such, else the target's "in" accuracy (DomainBed);
    under the oracle the part that did not choose."""
    return record.get(f"env{target}_new_acc", record[f"env{target}_in_acc"])


def drawn_plan(plan: InvariantPlan, draw: int) -> InvariantPlan:
    """Draw 0 is the plan itself; draw k varies its hyperparameters, each from a stream of its own seeded by
    (k, name), so that adding one does not change the others (DomainBed's random search, EVIL's ranges)."""
    if draw == 0:
        return plan

    def choose(name: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{draw}/{name}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))

    changes: dict[str, object] = {
        "rate": float(10 ** choose("rate").uniform(-3.5, -2.5)),
        "weight_decay": float(10 ** choose("weight_decay").uniform(-6, -2)),
        "batch": max(2, round(plan.batch * float(2 ** choose("batch").uniform(-1, 1)))),
    }
    if plan.method != "none":
        changes["density"] = round(float(choose("density").integers(1, 10)) / 10, 1)
    if plan.method in ("evil", "rigl"):
        changes["alpha"] = round(float(choose("alpha").integers(1, 9)) * 0.05, 2)
        # 100 .. 500 of the published 5001 steps, and the same share of other runs.
        delta = max(2, round(100 * int(choose("delta").integers(1, 6)) * plan.steps / PUBLISHED_STEPS))
        changes["delta"] = delta
        changes["accumulation"] = min(int(choose("accumulation").choice(ACCUMULATIONS)), delta - 1)
        if plan.mode != "extended":  # whose first mask knows of domains
            changes["first_mask"] = str(choose("first_mask").choice(FIRST_MASKS))
    if plan.base in ("irm", "vrex"):
        changes["penalty"] = float(10 ** choose("penalty").uniform(-1, 5))
    if plan.base in ("coral", "mmd"):
        changes["penalty"] = float(10 ** choose("penalty").uniform(-1, 1))
    return replace(plan, **changes)  # pyright: ignore[reportArgumentType]
