"""A whole run: paired batches, the target decides nothing, resuming equals going on."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, DataError
from fewer.core.tensors import read_tensors, write_tensors
from fewer.learn import invariant
from fewer.learn.data import LabelledImages
from fewer.learn.domains.images import Domains
from fewer.learn.domains.masks import unpack_masks
from fewer.learn.domains.plan import InvariantPlan
from fewer.learn.domains.run import InvariantResult, Run
from fewer.learn.domains.training import MaskedTraining
from fewer.learn.imagenet_networks import ImageNetResNet
from fewer.learn.model_folder import TrainedClassifier
from tests.learn.stop_at import Stop, StopAt

PLAN = InvariantPlan(steps=20, batch=4, network="small-cnn", rate=0.01, device="cpu", seed=3, augment=True)


def weights(result: InvariantResult) -> dict[str, torch.Tensor]:
    return dict(result.model.network.state_dict())


def same(one: InvariantResult, two: InvariantResult) -> bool:
    pairs = zip(weights(one).values(), weights(two).values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("stop", [3, 11])
def test_a_resumed_run_equals_the_uninterrupted_one(stop: int, domains: Domains, tmp_path: Path) -> None:
    whole = invariant(domains, "c", plan=PLAN)
    with pytest.raises(Stop):
        invariant(domains, "c", plan=PLAN, checkpoints=tmp_path, progress=StopAt(stop))
    resumed = invariant(domains, "c", plan=PLAN, checkpoints=tmp_path, resume=True)
    assert same(whole, resumed)
    assert whole.records == resumed.records
    assert all(torch.equal(whole.masks[n], resumed.masks[n]) for n in whole.masks)
    assert whole.figures == resumed.figures
    with pytest.raises(ConfigError, match=r"density = 0\.6, not 0\.5"):
        invariant(domains, "c", plan=replace(PLAN, density=0.5), checkpoints=tmp_path, resume=True)


def test_other_pictures_of_the_same_shape_are_not_resumed(domains: Domains, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        invariant(domains, "c", plan=PLAN, checkpoints=tmp_path, progress=StopAt(3))
    first = domains.images[0]
    darker = LabelledImages(first.images // 2, first.labels, first.class_names)
    other = Domains(domains.names, (darker, *domains.images[1:]))
    with pytest.raises(ConfigError, match="other pictures"):
        invariant(other, "c", plan=PLAN, checkpoints=tmp_path, resume=True)


@pytest.mark.parametrize("method", ["evil", "none"])
def test_averaged_weights_are_judged_and_kept(method: str, domains: Domains, tmp_path: Path) -> None:
    plan = replace(PLAN, average=0.7, method=method)  # pyright: ignore
    whole, last = (
        invariant(domains, "c", plan=plan),
        invariant(domains, "c", plan=replace(plan, average=None)),
    )
    assert not same(whole, last)
    assert [r["loss"] for r in whole.records] == [r["loss"] for r in last.records]  # training is the same
    for name, mask in whole.masks.items():
        assert whole.model.network.get_parameter(name)[~mask].abs().max() == 0.0
    with pytest.raises(Stop):
        invariant(domains, "c", plan=plan, checkpoints=tmp_path, progress=StopAt(9))
    assert same(whole, invariant(domains, "c", plan=plan, checkpoints=tmp_path, resume=True))


def test_averaged_weights_have_batch_norm_statistics_of_their_own(domains: Domains) -> None:
    """The trained network's statistics belong to other weights."""
    plan = replace(PLAN, average=0.9)
    run = Run(domains, ["c"], plan)
    for step in range(plan.steps):
        run.step(step)
    judged = run.judged()
    norms = [
        (own, module)
        for own, module in zip(run.training.network.modules(), judged.modules(), strict=True)
        if isinstance(module, torch.nn.BatchNorm2d)
    ]
    assert norms
    seen = torch.cat([run.batch(number, 5).images for number in range(10)])
    mean = judged.blocks[0](seen).mean((0, 2, 3))  # pyright: ignore
    assert torch.allclose(norms[0][1].running_mean, mean, atol=1e-4)
    assert all(not torch.equal(own.running_mean, module.running_mean) for own, module in norms)


def test_the_target_decides_nothing(domains: Domains) -> None:
    target = domains.images[2]
    other = LabelledImages(target.images.flip(0), 1 - target.labels, target.class_names)
    changed = Domains(domains.names, (*domains.images[:2], other))
    one, two = invariant(domains, "c", plan=PLAN), invariant(changed, "c", plan=PLAN)
    assert same(one, two)
    assert one.figures["step"] == two.figures["step"]


def test_masks_density_records_and_folder(domains: Domains, tmp_path: Path) -> None:
    result = invariant(domains, "a", "erm", "evil", plan=replace(PLAN, network="group-cnn"))
    for name, mask in result.masks.items():
        weight = result.model.network.get_parameter(name)
        assert abs(float(mask.float().mean()) - 0.6) <= 1 / mask.numel()
        assert weight[~mask].abs().max() == 0.0
    assert "blocks.0.weight" not in result.masks
    assert len(result.records) == 10
    assert {f"env{k}_{part}_acc" for k in range(3) for part in ("in", "out")} <= set(result.records[0])
    assert [layer.name for layer in result.layers] == list(result.masks)
    assert len(result.updates) >= 5
    result.save(tmp_path / "model")
    again = TrainedClassifier.load(tmp_path / "model")
    assert torch.equal(
        again.predict(domains.images[0].images), result.model.predict(domains.images[0].images)
    )
    packed = read_tensors(tmp_path / "model" / "mask.safetensors")
    assert all(torch.equal(unpack_masks(packed)[n], m) for n, m in result.masks.items())


def test_the_reported_accuracy_is_that_of_the_saved_model(domains: Domains) -> None:
    result = invariant(domains, "b", "vrex", "none", plan=PLAN)
    assert result.masks == {}
    right = result.model.predict(domains.images[1].images).argmax(1) == domains.images[1].labels
    assert float(right.float().mean()) == pytest.approx(result.figures["all_accuracy"])


def test_too_few_sources_and_unknown_names(domains: Domains) -> None:
    with pytest.raises(DataError, match="source domains are: c; at least 2"):
        invariant(domains, "a", plan=PLAN, left_out=("b",))
    with pytest.raises(ConfigError, match="allowed: a, b, c"):
        invariant(domains, "photo", plan=PLAN)
    with pytest.raises(ConfigError, match="density"):
        invariant(domains, "a", plan=replace(PLAN, density=2.0))


def test_imagenet_weights_start_a_run_with_frozen_norms(four_domains: Domains, tmp_path: Path) -> None:
    grey = four_domains
    coloured = Domains(
        grey.names,
        tuple(
            replace(d, images=d.images[..., :1].expand(-1, -1, -1, 3).contiguous()).select(range(20))
            for d in grey.images
        ),
    )
    trained = ImageNetResNet(3, 10, 18)
    state = {name.replace("classifier.", "fc."): value for name, value in trained.state_dict().items()}
    write_tensors(tmp_path / "w.safetensors", state)
    plan = InvariantPlan(
        method="none",
        network="resnet-18-imagenet",
        network_weights=str(tmp_path / "w.safetensors"),
        steps=2,
        warmup=0,
        batch=2,
        evaluate_every=2,
        device="cpu",
        rate=1e-5,
    )
    result = invariant(coloured, "a", plan=plan)
    network = result.model.network
    assert torch.equal(network.bn1.running_mean, trained.bn1.running_mean)  # pyright: ignore
    assert (network.conv1.weight - trained.conv1.weight).abs().max() < 1e-4  # pyright: ignore
    assert result.model.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    with pytest.raises(ConfigError, match="group-cnn"):
        invariant(coloured, "a", plan=replace(plan, network="group-cnn"))


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_in_the_middle_of_a_step_leaves_no_half_of_it(
    domains: Domains, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes when the gradients are there and the running statistics have moved."""
    plan, whole = PLAN, invariant(domains, "c", plan=PLAN)
    move, calls = MaskedTraining._move, []

    def moved(training: MaskedTraining, *given: object, **named: object) -> None:
        calls.append(1)
        if len(calls) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        move(training, *given, **named)  # pyright: ignore

    monkeypatch.setattr(MaskedTraining, "_move", moved)
    with pytest.raises(KeyboardInterrupt):
        invariant(domains, "c", plan=plan, checkpoints=tmp_path)
    assert len(calls) == 9
    resumed = invariant(domains, "c", plan=plan, checkpoints=tmp_path, resume=True)
    assert len(calls) == 20
    assert same(whole, resumed) and whole.records == resumed.records


def test_the_model_is_of_the_checkpoint_that_the_selection_picks(domains: Domains, tmp_path: Path) -> None:
    plan = replace(PLAN, method="none", evaluate_every=4)
    run = Run(domains, ["c"], plan)
    seen = {}
    for step in range(plan.steps):
        run.step(step)
        seen[step + 1] = {name: value.clone() for name, value in run.training.network.state_dict().items()}
    names = [f"env{env}_in_acc" for env in range(2)]
    records = [{"step": float(step), **dict.fromkeys(names, float(step == 8))} for step in (4, 8, 12, 16, 20)]
    oracle = invariant(domains, "c", plan=replace(plan, selection="oracle"))
    leave = replace(plan, selection="leave-one-out")
    inner = invariant(domains, "c", plan=leave, inner={"a": records, "b": records})
    for result, step, rule in ((oracle, 20, "oracle"), (inner, 8, "leave-one-out")):
        assert all(torch.equal(value, seen[step][name]) for name, value in weights(result).items())
        assert result.figures["step"] == step
        result.save(tmp_path / rule)
        training = TrainedClassifier.load(tmp_path / rule).training
        assert training["selection"] == rule
        assert training["checkpoint"] == f"step {step} of 20, picked by {rule}"
    with pytest.raises(ConfigError, match="inner="):
        invariant(domains, "c", plan=leave)
    with pytest.raises(Stop):
        invariant(domains, "c", plan=plan, checkpoints=tmp_path, progress=StopAt(5))
    with pytest.raises(ConfigError, match="selection = training-domain, not oracle"):
        invariant(domains, "c", plan=replace(plan, selection="oracle"), checkpoints=tmp_path, resume=True)
