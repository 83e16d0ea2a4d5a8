import json
import string
from dataclasses import replace
from pathlib import Path

import pytest

from fewer.core.errors import ConfigError
from fewer.core.files import read_json
from fewer.learn.domains.images import Domains
from fewer.learn.domains.plan import InvariantPlan
from fewer.learn.domains.sweep import Job, collect, picked, run_sweep, sweep_jobs

PLAN = InvariantPlan(steps=4, batch=4, network="small-cnn", device="cpu", method="none")
PLANS = {"erm": PLAN}


def test_a_sweep_resumes_where_it_stopped(domains: Domains, tmp_path: Path) -> None:
    jobs = sweep_jobs(domains, PLANS, ["a", "b"], [0], 1, "training-domain")
    stopped = run_sweep(domains, jobs, tmp_path)
    next(stopped)  # one of two runs, then the process ends
    first = jobs[0].folder(tmp_path) / "run.json"
    before = first.stat().st_mtime_ns
    runs = list(run_sweep(domains, jobs, tmp_path, resume=True))
    assert first.stat().st_mtime_ns == before
    assert not list(tmp_path.glob("*/checkpoints"))  # as large as the model three times over
    assert [job.target for job, _ in runs] == ["a", "b"]
    accuracies = collect(domains, runs, "training-domain")
    assert set(accuracies["erm"]) == {"a", "b"}
    with pytest.raises(ConfigError, match="steps = 4, not 5"):
        list(
            run_sweep(domains, [replace(jobs[0], plan=replace(jobs[0].plan, steps=5))], tmp_path, resume=True)
        )
    turned = [replace(one, images=one.images.flip(1)) for one in domains.images]
    with pytest.raises(ConfigError, match="other pictures"):
        list(run_sweep(replace(domains, images=tuple(turned)), jobs, tmp_path, resume=True))


NAMES = ("+90%", "-90%", "医院一", "医院二", "site a", "site-a", "x" * 90, "x" * 91)


def test_no_two_runs_share_a_folder(tmp_path: Path) -> None:
    jobs = [
        Job(method, replace(PLAN, seed=seed), name, draw, left)
        for method in ("erm", "erm + evil (extended)")
        for seed in (0, 2**62)
        for name in NAMES
        for draw in (0, 1)
        for left in ((), ("+80%",), ("80",))
    ]
    folders = {job.folder(tmp_path).name for job in jobs}
    assert len(folders) == len(jobs) and max(map(len, folders)) < 200
    assert all(set(name) <= set(string.ascii_letters + string.digits + ".-_") for name in folders)
    plain = Job("erm + evil", PLAN, "art_painting", 0)
    assert plain.folder(tmp_path).name == "art_painting--erm-evil--seed0--draw0"


def test_a_run_of_another_domain_is_not_taken_for_one_s_own(domains: Domains, tmp_path: Path) -> None:
    jobs = sweep_jobs(domains, PLANS, ["a", "b"], [0], 1, "training-domain")
    list(run_sweep(domains, jobs[:1], tmp_path))
    jobs[0].folder(tmp_path).rename(jobs[1].folder(tmp_path))
    with pytest.raises(ConfigError, match=r"holds a run of other domains \(a\)"):
        list(run_sweep(domains, jobs[1:], tmp_path, resume=True))


def test_domainbed_can_read_the_lines(domains: Domains, tmp_path: Path) -> None:
    jobs = sweep_jobs(domains, PLANS, ["c"], [5], 1, "oracle")
    list(run_sweep(domains, jobs, tmp_path))
    lines = (jobs[0].folder(tmp_path) / "results.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        assert {"args", "hparams", "step", "epoch", "loss", "env0_in_acc", "env2_out_acc"} <= set(line)
        assert line["args"]["test_envs"] == [2]
        assert line["args"]["trial_seed"] == 5
        assert isinstance(line["step"], int)


def test_leave_one_out_leaves_out_each_source(four_domains: Domains, tmp_path: Path) -> None:
    jobs = sweep_jobs(four_domains, PLANS, ["a"], [0], 2, "leave-one-out")
    assert len(jobs) == 2 * (1 + 3)
    assert {job.left_out for job in jobs} == {(), ("b",), ("c",), ("d",)}
    runs = list(run_sweep(four_domains, jobs, tmp_path))
    assert 0 <= collect(four_domains, runs, "leave-one-out")["erm"]["a"][0] <= 1
    assert len({job.folder(tmp_path) for job in jobs}) == len(jobs)
    # The saved model is of the step at which the runs that leave out one more domain do best.
    for draw in (0, 1):
        done = {job.left_out: run for job, run in runs if job.draw == draw}
        whole, left = done[()], [run for names, run in done.items() if names]
        scores = [
            sum(run["records"][at][f"env{four_domains.index(run['left_out'][0])}_in_acc"] for run in left)
            for at in range(len(whole["records"]))
        ]
        step = whole["records"][scores.index(max(scores))]["step"]
        folder = next(job for job, run in runs if run is whole).folder(tmp_path)
        training = read_json(folder / "model" / "config.json")["training"]
        assert training["checkpoint"] == f"step {step:.0f} of 4, picked by leave-one-out"
        assert whole["figures"]["step"] == step
    together = list(run_sweep(four_domains, jobs, tmp_path / "lanes", side_by_side=2))
    steps = {job: run["figures"] for job, run in together}
    assert steps == {job: run["figures"] for job, run in runs}
    draw, _ = picked(four_domains, runs, "leave-one-out")["erm", "a", 0]
    assert draw in (0, 1)


def test_leave_one_out_needs_four_domains(domains: Domains) -> None:
    with pytest.raises(ConfigError, match="4 are needed"):
        sweep_jobs(domains, PLANS, ["a"], [0], 1, "leave-one-out")
    with pytest.raises(ConfigError, match="allowed: a, b, c"):
        sweep_jobs(domains, PLANS, ["z"], [0], 1, "oracle")
