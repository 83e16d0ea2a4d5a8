"""One run: hold a domain out, train on the others under a mask, keep the checkpoint that a rule selects.

The journey: split every domain (protocol.py) -> rows of each source for each step, the same for every method
with the same seed -> MaskedTraining.step -> every tenth of the run the accuracy on all domains -> the network
that the plan's `selection` picks, with the mask it had, and what each layer lost.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from fewer.core.checkpoint import latest_checkpoint, save_checkpoint
from fewer.core.config import validate
from fewer.core.device import isolated_randomness, pick_device, seeded
from fewer.core.errors import ConfigError, DataError
from fewer.core.progress import Progress, SilentProgress
from fewer.core.tensors import write_tensors
from fewer.core.unbroken import unbroken
from fewer.learn.domains.averaged import measure_statistics
from fewer.learn.domains.bases import DomainBatch
from fewer.learn.domains.images import Domains
from fewer.learn.domains.layers import LayerReport, layer_reports
from fewer.learn.domains.masks import Masks, density_of, pack_masks
from fewer.learn.domains.picture_table import PictureTable, normalised
from fewer.learn.domains.plan import BaseName, InvariantPlan, MaskMethod, Selection
from fewer.learn.domains.protocol import Record, best_record, source_validation, split_domain
from fewer.learn.domains.training import MaskedTraining
from fewer.learn.domains.training_state import restore_training, training_state, under
from fewer.learn.few_labels.augment import draw_shifts
from fewer.learn.imagenet_networks import DEVIATION, MEAN, ImageNetResNet, freeze_norms, load_weights
from fewer.learn.model_folder import TrainedClassifier
from fewer.learn.networks import NetworkPlan, build_network

logger = logging.getLogger(__name__)

MEASURED = 10  # batches of the sources that give averaged weights their statistics


@dataclass(frozen=True, slots=True)
class InvariantResult:
    """A run's outcome; `model` and `masks` are of the checkpoint that the plan's `selection` picks."""

    model: TrainedClassifier
    masks: Masks
    records: list[dict[str, float]]
    """One for each evaluation; keys as DomainBed's: step, loss, env<i>_in_acc, env<i>_out_acc, ..."""
    target: str
    figures: dict[str, float]
    """`accuracy` on the target at the chosen checkpoint, `source_validation`, `density`, ..."""
    layers: list[LayerReport]
    updates: list[dict[str, float]]
    """Step, exchanged fraction and changed share of every mask update."""
    seconds: float
    plan: InvariantPlan
    notes: tuple[str, ...] = field(default=())

    def save(self, folder: Path | str) -> None:
        """The model's folder (masked zeros baked in) and `mask.safetensors`, one bit a weight."""
        self.model.save(folder)
        if self.masks:
            write_tensors(Path(folder) / "mask.safetensors", pack_masks(self.masks), {"kind": "fewer-mask"})


def invariant(
    domains: Domains,
    target: str,
    base: BaseName | None = None,
    method: MaskMethod | None = None,
    *,
    plan: InvariantPlan | None = None,
    left_out: Sequence[str] = (),
    inner: Mapping[str, Sequence[Record]] | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> InvariantResult:
    """Trains on every domain but `target` (and `left_out`) and reports on the target, whose pictures decide
    nothing. Two runs with the same seed see the same batches, whatever their method. `inner` is for the
    selection leave-one-out: source domain -> `records` of a run of the same plan that left it out as well.

    Raises `ConfigError` for an unknown domain or impossible settings, `DataError` for fewer than two source
    domains. The same plan repeats a run bit for bit on the same CPU, also after a resume.

        from fewer.learn import invariant, load_domains
        domains = load_domains("data/emoji-styles")
        result = invariant(domains, "noto", "erm", "evil")
    """
    plan = plan or InvariantPlan()
    changes = {k: v for k, v in (("base", base), ("method", method)) if v is not None}
    plan = validate(InvariantPlan, replace(plan, **changes))  # pyright: ignore[reportArgumentType]
    run = Run(domains, [target, *left_out], plan, inner)
    progress = progress or SilentProgress()
    first = run.restore(checkpoints) if resume and checkpoints else 0
    began = time.monotonic()
    progress.start(f"{plan.base} {plan.method}, {target} held out", plan.steps - first)
    try:
        for step in range(first, plan.steps):
            with unbroken():
                figures = run.step(step)
            progress.advance(1, **figures)
            if (step + 1) % run.every == 0 or step + 1 == plan.steps:
                run.evaluate(figures["loss"])
                if checkpoints:
                    run.save(checkpoints)
    finally:
        progress.stop()
        if checkpoints and run.training.step_number > first:
            run.save(checkpoints)  # also after Ctrl-C: --resume goes on from here
    return run.result(time.monotonic() - began)


class Run:
    """The parts of one run; `inner` as of `invariant`. A given `training` is started afresh in the tensors it
    has, a given table of `pictures` is read; `starts` remembers networks before their first step."""

    def __init__(
        self,
        domains: Domains,
        held: Sequence[str],
        plan: InvariantPlan,
        inner: Mapping[str, Sequence[Record]] | None = None,
        pictures: PictureTable | None = None,
        training: MaskedTraining | None = None,
        starts: dict[Hashable, nn.Module] | None = None,
    ) -> None:
        self.domains, self.plan = domains, plan
        self.held = [domains.index(name) for name in held]
        self.sources = [env for env in range(len(domains.names)) if env not in self.held]
        self.inner = {domains.index(name): records for name, records in (inner or {}).items()}
        nested = plan.selection == "leave-one-out" and len(self.held) > 1
        self.rule: Selection = "training-domain" if nested else plan.selection
        if self.rule == "leave-one-out" and not self.inner:
            raise ConfigError(
                "selection 'leave-one-out' needs the records of runs that leave out one more domain: give "
                "inner={domain: records}, or use run_sweep, which runs them"
            )
        self.device = pick_device(plan.device)
        self.every = plan.evaluate_every or max(1, plan.steps // 10)
        parts = [split_domain(domains, env, plan.holdout, plan.seed) for env in range(len(domains.names))]
        self.inside = [inside for inside, _ in parts]
        self.outside = [outside for _, outside in parts]
        if len(self.sources) < 2:
            kept = ", ".join(domains.names[env] for env in self.sources) or "none"
            raise DataError(
                f"with {', '.join(held)} held out the source domains are: {kept}; at least 2 are needed"
            )
        data = domains.images[0]
        self.network_plan = NetworkPlan(
            name=plan.network,
            channels=data.channels,
            classes=data.classes,
            height=data.size[0],
            width=data.size[1],
        )
        starts, key = {} if starts is None else starts, (self.network_plan, plan.seed, plan.network_weights)
        if key not in starts:
            starts[key] = self._start()
        network = starts[key]
        if training is None:
            network = copy.deepcopy(network).to(self.device)
            if self.device.type == "cuda":
                network = network.to(memory_format=torch.channels_last)
            training = MaskedTraining(network, plan, len(self.sources))
        else:
            training.restart(network, plan)
        self.training = training
        self.pictures = pictures or PictureTable(domains, self.device)
        mean, deviation = self._statistics()
        self.statistics = mean.to(self.device), deviation.to(self.device)
        self.records: list[dict[str, float]] = []
        self.best: tuple[dict[str, Tensor], Masks] = ({}, {})

    def _start(self) -> nn.Module:
        plan, channels = self.plan, self.network_plan.channels
        network = build_network(self.network_plan, plan.seed)
        if plan.network_weights:
            if not isinstance(network, ImageNetResNet) or channels != 3:
                raise ConfigError(
                    "network_weights are for resnet-18-imagenet and resnet-50-imagenet on pictures of 3 "
                    f"channels, not for {plan.network} on {channels}"
                )
            load_weights(network, plan.network_weights)
        return network

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the source domains' training pictures, each domain counting the same; those
        of ImageNet for weights that were trained on it."""
        if self.plan.network_weights:
            return torch.tensor(MEAN), torch.tensor(DEVIATION)
        pairs = [
            self.domains.images[env].select(self.inside[env]).mean_and_deviation() for env in self.sources
        ]
        means, deviations = torch.stack([m for m, _ in pairs]), torch.stack([d for _, d in pairs])
        mean = means.mean(0)
        return mean, (deviations.square() + (means - mean).square()).mean(0).sqrt()

    def step(self, step: int) -> dict[str, float]:
        with isolated_randomness(self.step_seed(step)):
            self.training.network.train()
            if self.plan.network_weights:
                freeze_norms(self.training.network)
            return self.training.step(self.batch(step), seeded(self.plan.seed, step, 1))

    def step_seed(self, step: int) -> int:
        """For what a step draws from the global generators."""
        return int(seeded(self.plan.seed, step, 2).initial_seed()) % 2**32

    def draw(self, step: int, stream: int = 0) -> tuple[Tensor, Tensor | None]:
        """Rows of the table and moves of one step: the same number of pictures of every source, drawn
        without replacement where there are enough."""
        generator = seeded(self.plan.seed, step, stream)
        rows, shifts, size = [], [], self.domains.images[0].size
        for env in self.sources:
            rows.append(_draw(self.inside[env], self.plan.batch, generator) + self.pictures.starts[env])
            if self.plan.augment:
                shifts.append(draw_shifts(self.plan.batch, *size, generator, flip=True))
        return torch.cat(rows), torch.cat(shifts) if shifts else None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Pictures of each source in a batch."""
        return (self.plan.batch,) * len(self.sources)

    def batch(self, step: int, stream: int = 0) -> DomainBatch:
        """What the network sees at a step."""
        rows, shifts = self.draw(step, stream)
        moved = None if shifts is None else shifts.to(self.device, non_blocking=True)
        chosen = rows.to(self.device, non_blocking=True)
        return self.pictures.batch(chosen, moved, self.statistics, self.sizes)

    def judged(self) -> nn.Module:
        """The network that counts, ready to be looked at. Where weights are averaged, batch norms measure
        their statistics anew, on training pictures of the sources."""
        network = self.training.judged().eval()
        if self.plan.average is not None and not self.plan.network_weights:
            with self.training.precision():
                measure_statistics(network, (self.batch(number, 5).images for number in range(MEASURED)))
        return network

    def evaluate(self, loss: float, rights: Sequence[Tensor] | None = None) -> None:
        """Appends a record; keeps the weights when the rule picks it from those so far. `rights`: for each
        domain 1.0 where the class is right, where that is known already."""
        if self.records and self.records[-1]["step"] == self.training.step_number:
            return
        masked = float(bool(self.training.masks) or self.plan.method == "none")
        record = {"step": float(self.training.step_number), "loss": loss, "masked": masked}
        network = self.judged() if rights is None else self.training.judged()
        for env in range(len(self.domains.names)):
            known = None if rights is None else rights[env]
            if self.plan.records == "brief" and env in self.sources:
                rows = self.outside[env]
                right = self._right(network, env, rows) if known is None else known[rows]
                record[f"env{env}_out_acc"] = float(right.mean())
            else:
                record |= self._accuracies(env, self._right(network, env) if known is None else known)
        self.records.append(record)
        if self._chosen() is record:
            weights = network.state_dict()
            masks = {name: mask.clone() for name, mask in self.training.masks.items()}
            self.best = ({name: value.clone() for name, value in weights.items()}, masks)

    def _chosen(self) -> dict[str, float]:
        """The record whose checkpoint is kept, of those so far."""
        best = best_record(self.records, self.held, self.rule, self.inner)
        return next(record for record in self.records if record is best)

    def _accuracies(self, env: int, right: Tensor) -> dict[str, float]:
        """Of the parts of a domain; `right` as of `_right`."""
        found = {
            f"env{env}_in_acc": float(right[self.inside[env]].mean()),
            f"env{env}_out_acc": float(right[self.outside[env]].mean()),
            f"env{env}_all_acc": float(right.mean()),
        }
        unseen = None if self.domains.unseen is None else self.domains.unseen[env]
        if unseen is not None and bool(unseen.any()):
            found[f"env{env}_new_acc"] = float(right[unseen].mean())
        return found

    @torch.no_grad()
    def _right(self, network: nn.Module, env: int, rows: Tensor | None = None) -> Tensor:
        """1.0 where the class is right, for every picture of a domain, or for those of `rows`."""
        table = self.pictures
        part = slice(table.starts[env], table.starts[env] + table.counts[env])
        images, labels = table.images[part], table.labels[part]
        if rows is not None:
            images, labels = images[rows.to(self.device)], labels[rows.to(self.device)]
        with self.training.precision():
            pieces = images.split(512)
            found = [network(normalised(piece, self.statistics)).argmax(1) for piece in pieces]
        return (torch.cat(found) == labels).double().cpu()

    @cached_property
    def fingerprint(self) -> str:
        """Of the pictures; a checkpoint belongs to them."""
        return self.domains.fingerprint()

    def save(self, folder: Path) -> None:
        tensors, facts = training_state(self.training)
        tensors |= {f"best/{name}": value for name, value in self.best[0].items()}
        tensors |= {f"best_mask/{name}": value for name, value in self.best[1].items()}
        facts |= {"records": self.records, "plan": asdict(self.plan), "held": self.held}
        facts["pictures"] = self.fingerprint
        save_checkpoint(folder, self.training.step_number, tensors, facts)

    def restore(self, folder: Path) -> int:
        """The step to go on from. Raises `ConfigError` when the checkpoint is of another plan."""
        found = latest_checkpoint(folder)
        if found is None:
            return 0
        mine, theirs = {**asdict(self.plan), "held": self.held}, found.facts["plan"]
        theirs = {"selection": "training-domain", **theirs, "held": found.facts["held"]}
        odd = [name for name in mine if name != "device" and mine[name] != theirs.get(name)]
        if odd:
            raise ConfigError(
                f"the checkpoint was made with {odd[0]} = {theirs.get(odd[0])}, not {mine[odd[0]]}; "
                "resume with the settings the run was started with, or give another --output"
            )
        if found.facts.get("pictures", self.fingerprint) != self.fingerprint:
            raise ConfigError(
                "the checkpoint was made with other pictures; resume with the data the run was started with, "
                "or give another --output"
            )
        restore_training(self.training, found.tensors, found.facts)
        self.records = found.facts["records"]
        self.best = (
            {k: v.to(self.device) for k, v in under(found.tensors, "best").items()},
            {k: v.to(self.device).bool() for k, v in under(found.tensors, "best_mask").items()},
        )
        logger.info("resuming at step %d", found.step)
        return found.step

    def result(self, seconds: float) -> InvariantResult:
        weights, masks = self.best
        target = self.held[0]
        network = self.training.network
        network.load_state_dict(weights)
        network.eval()
        layers = layer_reports(network, self.training.names, masks, self.training.first_masks, self._probe())
        chosen = self._chosen()
        figures = self._figures(chosen, target, masks)
        frozen = "yes" if self.plan.network_weights else "no"
        training = {
            **asdict(self.plan),
            "sources": [self.domains.names[env] for env in self.sources],
            "target": self.domains.names[target],
            "fit": self.domains.fit,
            "checkpoint": f"step {chosen['step']:.0f} of {self.plan.steps}, picked by {self.rule}",
            "normalisation": f"running statistics frozen: {frozen}",
        }
        model = TrainedClassifier(
            network,
            self.network_plan,
            self.domains.class_names,
            self.statistics[0].cpu(),
            self.statistics[1].cpu(),
            training,
            dict(figures),
        )
        name, updates, notes = self.domains.names[target], self.training.updates, self.domains.notes
        return InvariantResult(
            model, masks, self.records, name, figures, layers, updates, seconds, self.plan, notes
        )

    def _figures(self, record: dict[str, float], target: int, masks: Masks) -> dict[str, float]:
        headline = "new_acc" if f"env{target}_new_acc" in record else "in_acc"
        last = best_record(self.records, self.held, "oracle")
        return {
            "accuracy": record[f"env{target}_{headline}"],
            "all_accuracy": record[f"env{target}_all_acc"],
            "source_validation": source_validation(record, self.held),
            "step": record["step"],
            "oracle_accuracy": last[f"env{target}_{headline}"],
            "best_checkpoint_accuracy": max(r[f"env{target}_{headline}"] for r in self.records),
            "density": density_of(masks),
        }

    def _probe(self) -> list[DomainBatch]:
        """Eight batches for the report on layers, apart from those of training."""
        return [self.batch(number, 7) for number in range(8)]


def _draw(rows: Int64[Tensor, " n"], wanted: int, generator: torch.Generator) -> Int64[Tensor, " wanted"]:
    if wanted <= len(rows):
        return rows[torch.randperm(len(rows), generator=generator)[:wanted]]
    return rows[torch.randint(len(rows), (wanted,), generator=generator)]
