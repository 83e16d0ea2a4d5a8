"""EVIL inside an existing DomainBed checkout:

    # at the end of domainbed/algorithms.py
    from fewer.learn.for_domainbed import EVIL
    ALGORITHMS.append("EVIL")

and in `domainbed/hparams_registry.py` whatever you want to search (`density`, `alpha`, `delta`,
`grad_accumulation_n`, `dense_allocation`); without any the published defaults hold. Then
`python -m domainbed.scripts.train --algorithm EVIL ...` as usual.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fewer.core.device import seeded
from fewer.learn.domains.bases import DomainBatch
from fewer.learn.domains.plan import InvariantPlan
from fewer.learn.domains.training import MaskedTraining
from fewer.learn.group_network import GroupCNN


class EVIL(nn.Module):
    """DomainBed's interface: `update(minibatches)` with one (x, y) a source domain, `predict(x)`."""

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_domains: int,
        hparams: Mapping[str, object],
    ) -> None:
        super().__init__()
        self.hparams = dict(hparams)
        self.network = _network(input_shape, num_classes, self.hparams)
        self.num_domains = num_domains
        self.training_state: MaskedTraining | None = None

    def update(
        self, minibatches: Sequence[tuple[Tensor, Tensor]], unlabeled: object = None
    ) -> dict[str, float]:
        """One step; the optimizer is made at the first call, on the device the network then has."""
        if self.training_state is None:
            plan = domainbed_plan(self.hparams)
            self.training_state = MaskedTraining(self.network, plan, self.num_domains)
        images = torch.cat([x for x, _ in minibatches])
        labels = torch.cat([y for _, y in minibatches])
        batch = DomainBatch(images, labels, tuple(len(y) for _, y in minibatches))
        generator = seeded(self.training_state.plan.seed, self.training_state.step_number)
        return self.training_state.step(batch, generator)

    def predict(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.network(x)

    forward = predict


def domainbed_plan(hparams: Mapping[str, object]) -> InvariantPlan:
    """The plan that DomainBed's hyperparameters ask for; `dense_allocation` a of tmllab/EVIL keeps 1 - a
    of the weights, except with a random first mask, which keeps a."""
    first = hparams.get("mask_initialization", "weight")
    density = hparams.get("density", 0.6)
    if "dense_allocation" in hparams:
        share = float(hparams["dense_allocation"])  # pyright: ignore[reportArgumentType]
        # The mode "tmllab" turns a random first mask round by itself, as the released code does.
        released = hparams.get("evil_mode") == "tmllab"
        density = share if first == "random" and not released else 1 - share
    values = {
        "base": hparams.get("evil_base", "erm"),
        "method": hparams.get("evil_method", "evil"),
        "mode": hparams.get("evil_mode", "faithful"),
        "first_mask": first,
        "density": density,
        "alpha": hparams.get("alpha", 0.2),
        "delta": hparams.get("delta", 400),
        "accumulation": hparams.get("grad_accumulation_n", 20),
        "warmup": hparams.get("evil_warmup", 1000),
        "exchange_end": hparams.get("evil_end", 3000),
        "steps": hparams.get("evil_steps", 5001),
        "rate": hparams.get("lr", 5e-5),
        "weight_decay": hparams.get("weight_decay", 0.0),
        "seed": hparams.get("evil_seed", 0),
        "dtype": hparams.get("evil_dtype", "fp32"),
    }
    if values["mode"] == "extended" and "mask_initialization" not in hparams:
        values["first_mask"] = None
    from fewer.core.config import validate

    return validate(InvariantPlan, values)


class _Joined(nn.Module):
    """DomainBed's featurizer and classifier under the names that masks expect."""

    def __init__(self, featurizer: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.featurizer, self.classifier = featurizer, classifier

    def features(self, images: Tensor) -> Tensor:
        return self.featurizer(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.featurizer(images))


def _network(input_shape: Sequence[int], classes: int, hparams: Mapping[str, object]) -> nn.Module:
    """DomainBed's own network where DomainBed is importable, else the small one of this package."""
    try:
        networks = importlib.import_module("domainbed.networks")
    except ModuleNotFoundError:
        return GroupCNN(input_shape[0], classes)
    featurizer = networks.Featurizer(input_shape, hparams)
    return _Joined(featurizer, nn.Linear(featurizer.n_outputs, classes))
