import csv
import io
from dataclasses import replace

import torch

from fewer.learn.data import LabelledImages, pick_labels
from fewer.learn.few_labels.plan import SemiSupervisedPlan
from fewer.learn.few_labels.train import semi_supervised
from fewer.learn.few_labels.verdicts import Verdicts


def test_labels_next_are_the_least_accepted_then_least_confident() -> None:
    verdicts = Verdicts(
        torch.tensor([0, 1, 0, 1]),
        torch.tensor([0.9, 0.6, 0.5, 0.99]),
        torch.tensor([1, 0, 1, 0]),
        torch.tensor([1.0, 0.0, 0.0, torch.nan]),
    )
    assert verdicts.label_next(3).tolist() == [2, 1, 3]
    known = replace(verdicts, labelled=torch.tensor([False, False, True, False]))
    assert known.label_next(3).tolist() == [1, 3, 0]  # what has a label needs none
    assert verdicts.class_utilisation(3) == [0.5, 0.0, None]


def test_instant_gives_reasons_for_every_picture(train: LabelledImages) -> None:
    plan = SemiSupervisedPlan(steps=4, batch=6, ratio=3, device="cpu", posterior="plain", compare="noisy")
    for estimation in ("class", "instance"):
        result = semi_supervised(
            train, pick_labels(train.labels, 2, 3, 0), plan=plan.__class__(**_with(plan, estimation))
        )
        lines = list(csv.DictReader(io.StringIO(result.verdicts.as_csv(train.class_names))))
        assert len(lines) == len(train)
        assert [line["row"] for line in lines if line["labelled"] == "1"] == list(
            map(str, result.labelled.tolist())
        )
        assert lines[0].keys() >= {"threshold", "tau", "accepted", "error_rate", "certificate", "runner_up"}
        assert all(line["pseudo_label"] != line["runner_up"] for line in lines)
        assert all(float(line["error_rate"]) >= 0 for line in lines)


def test_other_methods_give_what_they_have(train: LabelledImages) -> None:
    plan = SemiSupervisedPlan(method="fixmatch", steps=2, batch=6, ratio=3, device="cpu")
    verdicts = semi_supervised(train, pick_labels(train.labels, 2, 3, 0), plan=plan).verdicts
    assert verdicts.threshold is None
    assert "threshold" not in verdicts.as_csv(train.class_names).splitlines()[0]


def _with(plan: SemiSupervisedPlan, estimation: str) -> dict:
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__} | {"estimation": estimation}
