"""Which short-term length? Bilevel search by gradient, then the most likely length is kept (spec 2.7).

Every step updates the weights w on training targets with the architecture `a` fixed; every second step
updates `a` on validation targets with w fixed (first order). Every length at least as long as the true
one fits equally well, so the architecture objective also pays for length:
penalty * spread * sum_j p_j n_j / n_max, where the spread is what the choice can win at all, the largest loss
of a length less the smallest.

Two relaxations over the lengths, p = softmax(a / tau):

- `expectation` (default): validation loss = sum_j p_j loss_j, every length judged alone, and in training
  every row of a batch takes a length in turn. All lengths learn equally much whatever p says.
- `mixture`: readouts are mixed, s = sum_j p_j s_j, in training and validation (DARTS). A length that leads by
  luck gets more of the gradient and leads more; among equally good lengths the winner is then arbitrary.

The probabilities propose a length. Next to them stands evidence (`oneshot.py`): every length's validation
figure with the shared weights, and which lengths these figures cannot tell from the best; `trials.py` settles
between those. Test targets are never read here.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from fewer.core.checkpoint import (
    copy_into,
    flatten_state,
    latest_checkpoint,
    save_checkpoint,
    unflatten_state,
)
from fewer.core.device import isolated_randomness, seeded
from fewer.core.errors import ConfigError, DataError
from fewer.core.progress import Progress, SilentProgress
from fewer.recommend.automlp import AutoMLPNetwork, AutoMLPShape
from fewer.recommend.data.features import ItemFeatures
from fewer.recommend.data.prefixes import Batch, Prefixes
from fewer.recommend.data.splits import Split
from fewer.recommend.oneshot import Evidence
from fewer.recommend.training.encoders import item_table
from fewer.recommend.training.loop import FULL_SOFTMAX_LIMIT, TrainingPlan, train_network
from fewer.recommend.training.losses import next_item_loss
from fewer.recommend.training.recorded import RecordedSteps

Relaxation = Literal["expectation", "mixture"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """How the search runs."""

    relaxation: Relaxation = "expectation"
    """What the probabilities weigh: losses of single lengths, or readouts."""
    epochs: Annotated[int, Field(ge=1)] = 30
    """At most this many."""
    warmup: Annotated[int, Field(ge=0)] = 3
    """Epochs before `a` moves, so that candidates compete fairly."""
    penalty: Annotated[float, Field(ge=0)] = 0.1
    """Cost of the longest length (lambda), as a share of what the best length wins over the worst; 0 is the
    paper."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Of the weights."""
    architecture_rate: Annotated[float, Field(gt=0)] = 2e-2
    """Of `a`. The usual 3e-3 leaves p flat after a short search [measured: spec 2.7]."""
    final_temperature: Annotated[float, Field(gt=0)] = 1.0
    """tau falls geometrically from 1 to this."""
    batch_size: Annotated[int, Field(ge=1)] = 1024
    validation_batch_size: Annotated[int, Field(ge=1)] = 2048
    """Targets per step of `a`: large, because the differences between lengths are small."""
    validation_users: Annotated[int, Field(ge=1)] = 20_000
    """The figures of every length look at no more users than these."""
    finalists: Annotated[int, Field(ge=1)] = 4
    """At most so many lengths that the search cannot tell apart go into a trial; 1 keeps the most likely."""
    patience: Annotated[int, Field(ge=1)] = 5
    """Stop when for so many epochs neither the most likely length changed nor its validation loss fell."""
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(slots=True)
class SearchResult:
    """The chosen length and how it came about; `path[e][j]` is p_j after epoch e."""

    length: int
    candidates: tuple[int, ...]
    probabilities: list[float]
    path: list[list[float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Validation loss after every epoch without the penalty (of the most likely length or the mixture)."""
    figures: list[float] = field(default_factory=list)
    """Every length's validation NDCG@10 with the shared weights, mean of the last epochs."""
    rivals: list[int] = field(default_factory=list)
    """The most likely length and those that the figures cannot tell from the best one, best first."""
    price: float = 0.0
    """What the longest length pays in NDCG@10: penalty times the spread of the figures."""
    trials: list[dict[str, object]] = field(default_factory=list)
    """Where there were rivals: how each did when trained alone."""
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    grid: list[dict[str, float | int]] = field(default_factory=list)
    """With `verify_search`: every fixed length's validation NDCG@10, best first."""


def search_length(
    shape: AutoMLPShape,
    split: Split,
    plan: SearchPlan,
    *,
    features: ItemFeatures | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
    folder: Path | None = None,
    resume: bool = False,
) -> SearchResult:
    """The most likely candidate after the search. The searched weights are thrown away.

    With `folder` every epoch is a checkpoint; a resumed search takes the path of an uninterrupted one.
    Raises `ConfigError` without a short branch, `DataError` when there are no training or validation targets.
    """
    progress = progress or SilentProgress()
    if not shape.short_branch:
        raise ConfigError("there is no length to search: the short branch is off")
    if len(split.train) == 0 or len(split.validation) == 0:
        raise DataError(
            "the search needs training and validation targets: users with at least 3 interactions; "
            "without them name one length, --candidates 5"
        )
    with isolated_randomness(plan.seed):
        network = AutoMLPNetwork(shape, features).to(device or torch.device("cpu"))
    if len(network.candidates) == 1:
        return SearchResult(length=network.candidates[0], candidates=network.candidates, probabilities=[1.0])
    search = _Search(network, split, plan)
    if resume and folder is not None:
        search.restore(folder)
    found = search.found
    progress.start("searching the short-term length", plan.epochs)
    progress.advance(len(found.path))
    try:
        while len(found.path) < plan.epochs and not _settled(found.path, found.losses, plan):
            loss = search.epoch()
            progress.advance(1, loss=loss, length=float(found.length), probability=max(found.probabilities))
            if folder is not None:
                search.save(folder)
    finally:
        progress.stop()
    return found


class InTurn(nn.Module):
    """What `RecordedSteps` asks of a network: every row of a batch takes a length in turn."""

    learns_from: Literal["prefixes"] = "prefixes"

    def __init__(self, network: AutoMLPNetwork) -> None:
        super().__init__()
        self.network, self.item_embedding = network, network.item_embedding

    def forward(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        return self.network.encode_in_turn(histories)


class _Search:
    """One search between epochs: both optimizers, the data, and what was found so far."""

    def __init__(self, network: AutoMLPNetwork, split: Split, plan: SearchPlan) -> None:
        self.network, self.split, self.plan = network, split, plan
        self.items = split.interactions.item_count
        self.prefixes = Prefixes(split, network.shape.length)
        weights = [p for name, p in network.named_parameters() if name != "architecture"]
        device = network.architecture.device
        on_gpu = device.type == "cuda"
        self.weight_optimizer = torch.optim.Adam(
            weights, lr=plan.learning_rate, capturable=on_gpu, fused=on_gpu or None
        )
        self.architecture_optimizer = torch.optim.Adam([network.architecture], lr=plan.architecture_rate)
        lengths = torch.tensor(network.candidates, dtype=torch.float32)
        self.costs = (lengths / lengths.max()).to(device)
        self.recorded = None
        if on_gpu and plan.relaxation == "expectation" and self.items <= FULL_SOFTMAX_LIMIT:
            in_turn = InTurn(network)
            self.recorded = RecordedSteps(
                in_turn, self.weight_optimizer, self.prefixes.to(device), self.items
            )
        self.found = SearchResult(
            length=network.candidates[0],
            candidates=network.candidates,
            probabilities=network.probabilities().tolist(),
        )
        chosen = split.validation[: plan.validation_users]
        self.evidence = Evidence(self.prefixes, chosen, self.items)
        self._validation: list[torch.Tensor] = []
        self._validation_steps = 0

    def epoch(self) -> float:
        """One pass over the training targets; notes what was found and returns the mean training loss."""
        found, began, cpu = self.found, time.monotonic(), time.process_time()
        loss = self._learn(len(found.path))
        found.probabilities = self.network.probabilities().tolist()
        found.path.append(found.probabilities)
        leader = most_likely(found.probabilities)
        found.length = found.candidates[leader]
        found.losses.append(self._validation_loss(leader))
        self.evidence.add(self.network)
        found.figures = self.evidence.figures()
        found.price = self.plan.penalty * (max(found.figures) - min(found.figures))
        found.rivals = self.evidence.rivals(leader, [found.price * cost for cost in self.costs.tolist()])
        found.seconds += time.monotonic() - began
        found.cpu_seconds += time.process_time() - cpu
        return loss

    def save(self, folder: Path) -> None:
        """The state after an epoch."""
        tensors, rest = flatten_state(self.network.state_dict(), "model")
        for name, optimizer in self._optimizers().items():
            more, facts = flatten_state(optimizer.state_dict(), name)
            tensors, rest = tensors | more, rest | facts
        tensors |= {f"evidence/{age}": figures for age, figures in enumerate(self.evidence.recent)}
        found = {**asdict(self.found), "validation_steps": self._validation_steps}
        save_checkpoint(folder, len(self.found.path), tensors, {"rest": rest, "found": found})

    def restore(self, folder: Path) -> None:
        """Continues from the newest checkpoint of `folder`, if there is one."""
        saved = latest_checkpoint(folder)
        if saved is None:
            return
        copy_into(self.network, saved.tensors, "model")
        for name, optimizer in self._optimizers().items():
            optimizer.load_state_dict(unflatten_state(saved.tensors, saved.facts["rest"], name))
        kept = sorted(name for name in saved.tensors if name.startswith("evidence/"))
        self.evidence.recent = [saved.tensors[name] for name in kept]
        found = dict(saved.facts["found"])
        self._validation_steps = found.pop("validation_steps")
        self.found = SearchResult(**{**found, "candidates": tuple(found["candidates"])})

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"weights": self.weight_optimizer, "architecture": self.architecture_optimizer}

    def _learn(self, number: int) -> float:
        network, plan = self.network, self.plan
        moving = number >= plan.warmup
        network.temperature = plan.final_temperature ** (number / max(plan.epochs - 1, 1))
        generator = seeded(plan.seed, 5, number)
        losses = []
        network.train()
        batches = self.prefixes.epoch(self.split.train, plan.batch_size, plan.seed, number)
        with isolated_randomness(int(torch.randint(2**31, (1,), generator=generator))):
            if self.recorded is not None:
                return self._learn_recorded(self.recorded, batches, moving, generator)
            for step, positions in enumerate(batches):
                loss = self._training_loss(self.prefixes.gather(positions), step, generator)
                network.zero_grad(set_to_none=True)
                loss.backward()
                self.weight_optimizer.step()
                losses.append(loss.item())
                if moving and step % 2 == 1:
                    self._move_architecture(generator)
        return sum(losses) / len(losses)

    def _learn_recorded(
        self, recorded: RecordedSteps, batches: list[torch.Tensor], moving: bool, generator: torch.Generator
    ) -> float:
        """On a GPU: two steps of the weights as recorded graphs, then one of the architecture."""
        losses = []
        for start in range(0, len(batches), 2):
            pair = batches[start : start + 2]
            widths = [int(self.prefixes.lengths(positions).max()) for positions in pair]
            losses.append(recorded.epoch(pair, widths)[0])
            if moving and len(pair) == 2:
                self._move_architecture(generator)
        return sum(losses) / len(losses)

    def _move_architecture(self, generator: torch.Generator) -> None:
        network, batch = self.network, self.prefixes.gather(self._next_validation())
        network.eval()  # dropout would only add noise to the comparison
        each = self._each_loss(batch, generator)
        if self.plan.relaxation == "expectation":
            loss = (network.probabilities() * each).sum()
        else:
            loss = self._loss(network(self._histories(batch)), batch, generator)
        network.train()
        price = self.plan.penalty * (each.max() - each.min())
        loss = loss + price * (network.probabilities() * self.costs).sum()
        (network.architecture.grad,) = torch.autograd.grad(loss, [network.architecture])
        self.architecture_optimizer.step()

    def _training_loss(self, batch: Batch, step: int, generator: torch.Generator) -> torch.Tensor:
        histories = self._histories(batch)
        if self.plan.relaxation == "expectation":
            return self._loss(self.network.encode_in_turn(histories, step), batch, generator)
        return self._loss(self.network(histories), batch, generator)

    @torch.no_grad()
    def _each_loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Every candidate's own loss on the same targets (and the same negatives, where there are any)."""
        seed = int(torch.randint(2**31, (1,), generator=generator))
        each = self.network.encode_each(self._histories(batch))
        return torch.stack(
            [self._loss(encoded, batch, torch.Generator().manual_seed(seed)) for encoded in each]
        )

    @torch.no_grad()
    def _validation_loss(self, leader: int) -> float:
        """Mean loss over (at most) one large batch of validation targets, for the stopping rule."""
        positions = self.split.validation[: self.plan.validation_batch_size]
        batch, generator = self.prefixes.gather(torch.from_numpy(positions)), seeded(self.plan.seed, 8)
        self.network.eval()
        if self.plan.relaxation == "expectation":
            return float(self._each_loss(batch, generator)[leader])
        return float(self._loss(self.network(self._histories(batch)), batch, generator))

    def _histories(self, batch: Batch) -> torch.Tensor:
        return batch.histories.to(self.network.item_embedding.weight.device)

    def _loss(self, encoded: torch.Tensor, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        table = item_table(self.network, self.items)
        name = "cross-entropy" if self.items <= FULL_SOFTMAX_LIMIT else "sampled-softmax"
        return next_item_loss(name, encoded, table, batch.targets.to(table.device), generator)

    def _next_validation(self) -> torch.Tensor:
        """Batch after batch, epoch after epoch: a pure function of how many were taken."""
        size, positions = self.plan.validation_batch_size, self.split.validation
        epoch, place = divmod(self._validation_steps, -(-len(positions) // size))
        if place == 0 or not self._validation:
            self._validation = self.prefixes.epoch(positions, size, self.plan.seed + 1, epoch)
        self._validation_steps += 1
        return self._validation[place]


def most_likely(probabilities: Sequence[float]) -> int:
    """Index of the largest probability; the shorter length where two are equal."""
    return max(range(len(probabilities)), key=lambda index: probabilities[index])


def _settled(path: list[list[float]], losses: list[float], plan: SearchPlan) -> bool:
    """Nothing happened for `patience` epochs. A leader alone proves nothing: before the weights have learned
    anything all lengths are equally bad, and the penalty alone decides."""
    moved = path[plan.warmup :]
    if len(moved) <= plan.patience:
        return False
    recent = {most_likely(p) for p in moved[-plan.patience :]}
    return len(recent) == 1 and min(losses[-plan.patience :]) >= min(losses[: -plan.patience])


def verify_by_grid(
    shape: AutoMLPShape,
    split: Split,
    plan: TrainingPlan,
    *,
    features: ItemFeatures | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> list[dict[str, float | int]]:
    """Trains every fixed length with the same plan; best validation NDCG@10 first."""
    results = []
    for length in sorted({n for n in shape.candidates if n <= shape.length}):
        with isolated_randomness(plan.seed):
            network = AutoMLPNetwork(replace(shape, candidates=(length,)), features)
        network = nn.Module.to(network, device or torch.device("cpu"))
        result = train_network(network, split, plan, length=shape.length, progress=progress)
        results.append({"length": length, "ndcg_at_10": result.best_ndcg, "cpu_seconds": result.cpu_seconds})
    return sorted(results, key=lambda entry: -entry["ndcg_at_10"])
