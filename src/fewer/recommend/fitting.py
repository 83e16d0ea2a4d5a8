"""From interactions to a recommender: split, search the length, train to early stopping, measure.

`fit` reads (or takes) interactions, splits them, searches the short-term length where the method is AutoMLP,
trains, and measures on the test targets beside the counting baselines that often win.
"""

import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from fewer.core.config import validate
from fewer.core.device import DeviceName, isolated_randomness, pick_device
from fewer.core.errors import ConfigError
from fewer.core.files import read_json, write_json
from fewer.core.progress import Progress, SilentProgress
from fewer.recommend.baselines.counting import LastItems, Markov, Popularity
from fewer.recommend.data.features import ItemFeatures
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.data.prefixes import Prefixes
from fewer.recommend.data.reading import read_interactions
from fewer.recommend.data.splits import Split, leave_last_out, temporal
from fewer.recommend.evaluate import evaluate
from fewer.recommend.methods import (
    MethodName,
    Sizes,
    automlp_shape,
    build_network,
    fitting_candidates,
    own_loss,
)
from fewer.recommend.recommender import Recommender
from fewer.recommend.search import SearchPlan, SearchResult, search_length, verify_by_grid
from fewer.recommend.started import belongs
from fewer.recommend.training.loop import TrainingPlan, train_network
from fewer.recommend.trials import settle

SEARCH_OPTIONS = ("penalty", "relaxation", "finalists", "search_epochs")


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """Everything that `fit` needs besides the data. The short names set the plans below them."""

    method: MethodName = "automlp"
    sizes: Sizes = field(default_factory=Sizes)
    training: TrainingPlan = field(default_factory=TrainingPlan)
    search: SearchPlan = field(default_factory=SearchPlan)
    split: str = "leave-last-out"
    """`leave-last-out`, `temporal`, or `everything` (learn from all, measure nothing)."""
    verify_search: bool = False
    features: ItemFeatures | None = None
    device: DeviceName = "auto"
    folder: Path | None = None
    """Where checkpoints go."""
    resume: bool = False


def fit(
    interactions: Interactions | Path | str,
    settings: FitSettings | None = None,
    progress: Progress | None = None,
) -> Recommender:
    """Trains one method on interactions (or a file of them) and measures it beside the counting baselines."""
    settings, progress = settings or FitSettings(), progress or SilentProgress()
    if not isinstance(interactions, Interactions):
        interactions = read_interactions(Path(interactions))
    sizes, notes = fitting_candidates(settings.sizes)
    if settings.folder is not None:
        chosen = {
            name: getattr(settings, name) for name in ("method", "sizes", "training", "search", "split")
        }
        belongs(settings.folder, settings.resume, interactions, settings.features, **chosen)
    notes = [*interactions.notes, *notes]
    for note in notes:
        progress.say(note)
    split = make_split(interactions, settings.split)
    if settings.split != "everything" and not len(split.test):
        notes.append(f"split {settings.split}: no user has a test target, so nothing is measured")
        progress.say(notes[-1])
    device = pick_device(settings.device)
    plan = replace(settings.training, loss=own_loss(settings.method, settings.training.loss))
    search, checkpoints = None, settings.folder
    if settings.method == "automlp" and len(sizes.candidates) > 1 and sizes.short_branch:
        # a deployment fit keeps nothing back, but a length can only be judged by what was kept back
        everything = settings.split == "everything"
        asked = make_split(interactions, "leave-last-out") if everything else split
        search = _search(settings, sizes, asked, device, progress)
        sizes = replace(sizes, candidates=(search.length,))
        if settings.folder is not None and search.trials and not everything:
            checkpoints = settings.folder / "trials" / str(search.length)  # the winner's training goes on
    with isolated_randomness(plan.seed):
        network = build_network(settings.method, sizes, interactions.item_count, settings.features).to(device)
    result = train_network(
        network,
        split,
        plan,
        length=sizes.length,
        folder=checkpoints,
        resume=settings.resume or checkpoints != settings.folder,
        progress=progress,
    )
    made = Recommender(
        network=network.eval(),
        method=settings.method,
        sizes=sizes,
        item_ids=list(interactions.item_ids),
        popularity=torch.from_numpy(interactions.popularity()).float(),
        exclude_seen=not interactions.repeats,
        features=settings.features,
    )
    made.report = {
        "notes": notes,
        "users": interactions.user_count,
        "items": interactions.item_count,
        "interactions": len(interactions),
        "repeat_share": interactions.repeat_share,
        "training": asdict(result),
        "search": asdict(search) if search else None,
        "split": settings.split,
        "metrics": compare(made, split) if len(split.test) else {},
    }
    return made


def make_split(interactions: Interactions, name: str) -> Split:
    """`leave-last-out`, `temporal` or `everything`. Raises `ConfigError` for another name."""
    if name == "temporal":
        return temporal(interactions)
    if name not in ("leave-last-out", "everything"):
        raise ConfigError(f"split {name!r} is not known; allowed: leave-last-out, temporal, everything")
    return leave_last_out(interactions, everything=name == "everything")


def compare(recommender: Recommender, split: Split, **options: object) -> dict[str, dict[str, float | int]]:
    """The model's test figures beside popularity, the last item again, and first-order Markov."""
    prefixes = Prefixes(split, recommender.sizes.length)
    table = {recommender.method: recommender.evaluate(split, **options)}
    for name, baseline in (("popularity", Popularity), ("last-item", LastItems), ("markov", Markov)):
        table[name] = evaluate(baseline.fit(split), prefixes, split.test, **{**options, "warn": False})
    return table


def settings_from(method: MethodName = "automlp", **options: object) -> FitSettings:
    """`FitSettings` from flat names: fields of `FitSettings`, `Sizes` and `TrainingPlan`.

    `seed`, `batch_size` and `learning_rate` reach the search too; `penalty`, `relaxation`, `finalists` and
    `search_epochs` are its own.
    Raises `ConfigError` for a name that none of them has.
    """
    groups: dict[str, dict[str, object]] = {"sizes": {}, "training": {}, "search": {}, "": {}}
    homes = {"sizes": Sizes, "training": TrainingPlan}
    for name, value in options.items():
        found = [group for group, cls in homes.items() if name in cls.__dataclass_fields__]
        if name in SEARCH_OPTIONS:
            groups["search"][name.removeprefix("search_")] = value
        elif found:
            groups[found[0]][name] = value
        elif name in FitSettings.__dataclass_fields__:
            groups[""][name] = value
        else:
            allowed = sorted(
                {*Sizes.__dataclass_fields__, *TrainingPlan.__dataclass_fields__, *SEARCH_OPTIONS}
            )
            raise ConfigError(f"{name!r} is not a setting; allowed: {', '.join(allowed)}")
    shared = ("seed", "batch_size", "learning_rate")
    groups["search"] |= {name: options[name] for name in shared if name in options}
    return FitSettings(
        **{
            "method": method,
            "sizes": validate(Sizes, groups["sizes"]),
            "training": validate(TrainingPlan, groups["training"]),
            "search": validate(SearchPlan, groups["search"]),
            **groups[""],
        }  # pyright: ignore
    )


def _search(
    settings: FitSettings, sizes: Sizes, split: Split, device: torch.device, progress: Progress
) -> SearchResult:
    done = None if settings.folder is None else settings.folder / "search.json"
    if settings.resume and done is not None and done.is_file():
        saved = read_json(done)
        return SearchResult(**{**saved, "candidates": tuple(saved["candidates"])})
    shape = automlp_shape(sizes, split.interactions.item_count)
    checkpoints = None if settings.folder is None else settings.folder / "search"
    trials = None if settings.folder is None else settings.folder / "trials"
    if trials is not None and not settings.resume:
        shutil.rmtree(trials, ignore_errors=True)
    shared = {"features": settings.features, "device": device, "progress": progress}
    search = search_length(
        shape, split, settings.search, folder=checkpoints, resume=settings.resume, **shared
    )  # fmt: skip
    settle(search, shape, split, settings.training, settings.search.finalists, folder=trials, **shared)
    if settings.verify_search:
        search.grid = verify_by_grid(shape, split, settings.training, **shared)
    if done is not None and checkpoints is not None:
        write_json(done, asdict(search))
        shutil.rmtree(checkpoints, ignore_errors=True)
    return search
