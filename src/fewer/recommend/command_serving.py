"""The verbs that use a trained model: `fewer recommend evaluate`, `suggest`, `export`."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field

from fewer.core.errors import ConfigError, DataError, FileError
from fewer.core.files import read_bytes, write_bytes
from fewer.core.progress import Progress
from fewer.recommend.data.interactions import Interactions
from fewer.recommend.fitting import compare, make_split
from fewer.recommend.options import LogOptions, RunOptions
from fewer.recommend.recommender import Recommender, Suggestion
from fewer.recommend.serving.index import GraphIndex, GraphPlan, ItemIndex, verified_note
from fewer.recommend.serving.scan import KIND as SCAN
from fewer.recommend.serving.scan import ScanIndex

MAX_HISTORIES_BYTES = 2**30
MOST_TOLD = 20  # histories that are spoken of one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest(LogOptions):
    """What `fewer recommend evaluate` is asked: every user's last known item is the question."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: Path
    """Folder of a trained model."""
    split: Literal["leave-last-out", "temporal"] = "leave-last-out"
    """Which interactions are the questions."""
    k: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = (5, 10, 20)
    """Lengths of the lists that are measured."""
    exclude_seen: bool = False
    """Take items of the history out of the competition."""
    sampled: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Rank among so many random items instead of all (misleading; prints a warning)."""


def evaluate_command(request: EvaluateRequest, progress: Progress) -> dict[str, object]:
    """HR, NDCG and MRR at every k, full ranking, beside popularity, the last item again and Markov."""
    recommender = Recommender.load(request.model, request.device)
    interactions = in_vocabulary(request.read(), recommender, progress)
    split = make_split(interactions, request.split)
    if request.sampled is not None:
        progress.say(
            f"sampled metrics ({request.sampled} negatives): 5 to 8 times larger than full ranking, "
            "and they order models wrongly"
        )
    table = compare(
        recommender,
        split,
        ks=request.k,
        exclude_seen=request.exclude_seen,
        sampled_negatives=request.sampled,
        seed=request.seed,
        warn=False,  # said above
    )
    protocol = "full ranking" if request.sampled is None else f"sampled, {request.sampled} negatives"
    own = table.pop(recommender.method)
    return {"protocol": protocol, "method": recommender.method, **own, "baselines": table}


def in_vocabulary(interactions: Interactions, recommender: Recommender, progress: Progress) -> Interactions:
    """The interactions in the model's item numbers; items it does not know are skipped, with a count.

    Raises `DataError` when nothing is left.
    """
    numbers = np.array([0, *[(recommender.numbers([one]) or [0])[0] for one in interactions.item_ids]])
    items = numbers[interactions.items]
    keep = items > 0
    if not keep.any():
        raise DataError(f"the model knows none of the {interactions.item_count} items of this file")
    if not keep.all():
        progress.say(f"{int((~keep).sum())} interactions with items that the model does not know: skipped")
    times = interactions.times
    return Interactions.from_codes(
        interactions.user_codes[keep],
        interactions.user_ids,
        items[keep],
        recommender.item_ids,
        None if times is None else times[keep],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SuggestRequest(RunOptions):
    """What `fewer recommend suggest` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: Path
    """Folder of a trained model."""
    history: str | None = None
    """Items of one user, oldest first, separated by commas."""
    histories: Path | None = None
    """Or a file with one such line per user."""
    k: Annotated[int, Field(ge=1, le=100_000)] = 10
    """How many items."""
    exclude_seen: Literal["auto", "yes", "no"] = "auto"
    """May a suggestion repeat the history? `auto` follows the training data."""
    index: Path | None = None
    """Index that `fewer recommend export --index` wrote; default: exact."""
    output: Path | None = None
    """With --histories: write the suggestions to this .csv or .jsonl instead of printing them."""


def suggest_command(request: SuggestRequest, progress: Progress) -> dict[str, object]:
    """The best next items; says when unknown items were skipped and when popularity had to answer."""
    if (request.history is None) == (request.histories is None):
        raise ConfigError(
            "give either --history ITEM,ITEM,... or --histories FILE with one such line per user"
        )
    if request.output is not None:
        check_output(request)
    if request.history is not None:
        histories = [_words(request.history)]
    else:
        assert request.histories is not None
        raw = read_bytes(request.histories, MAX_HISTORIES_BYTES)
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise FileError(f"{request.histories.name}: not UTF-8 text") from error
        # not str.splitlines, to which a separator inside an id is a line's end too
        histories = [_words(line.removesuffix("\n")) for line in io.StringIO(text, newline=None)]
    recommender = Recommender.load(request.model, request.device)
    if request.index is not None:
        recommender.use_index(load_index(request.index, recommender))
    exclude = {"auto": None, "yes": True, "no": False}[request.exclude_seen]
    answers = recommender.suggest(histories, request.k, exclude_seen=exclude)
    tell(answers, progress)
    if request.history is not None:
        return asdict(answers[0])
    if request.output is not None:
        write_suggestions(answers, request.output)
        return {
            "output": str(request.output),
            "histories": len(answers),
            "fallbacks": sum(answer.fallback for answer in answers),
            "unknown": sum(answer.unknown for answer in answers),
        }
    return {"suggestions": [asdict(answer) for answer in answers]}


def check_output(request: SuggestRequest) -> None:
    """Raises `ConfigError` for a file that could not be written as asked, before anything is computed."""
    assert request.output is not None
    if request.histories is None:
        raise ConfigError("--output goes with --histories FILE; one --history is printed")
    if request.output.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"--output {str(request.output)!r}: allowed are .csv and .jsonl")


def tell(answers: Sequence[Suggestion], progress: Progress) -> None:
    """What could not be used: history by history while they are few, otherwise in sum."""
    if len(answers) > MOST_TOLD:
        fallbacks = sum(answer.fallback for answer in answers)
        skipped = sum(answer.unknown for answer in answers)
        if fallbacks:
            progress.say(f"{fallbacks} histories with no known item: popularity lists (fallback)")
        if skipped:
            progress.say(f"{skipped} unknown items skipped")
        return
    for number, answer in enumerate(answers, start=1):
        if answer.fallback:
            progress.say(f"history {number}: no known item, so this is the popularity list (fallback)")
        elif answer.unknown:
            progress.say(f"history {number}: {answer.unknown} unknown items skipped")


def write_suggestions(answers: Sequence[Suggestion], path: Path) -> None:
    """`history,rank,item,score,fallback` a row (.csv), or one object a history (.jsonl); histories count
    from 1. Raises `FileError`."""
    text = io.StringIO(newline="")
    if path.suffix == ".csv":
        writer = csv.writer(text)
        writer.writerow(["history", "rank", "item", "score", "fallback"])
        for number, answer in enumerate(answers, start=1):
            for rank, (item, score) in enumerate(zip(answer.items, answer.scores, strict=True), start=1):
                writer.writerow([number, rank, item, f"{score:.6g}", str(answer.fallback).lower()])
    else:
        for number, answer in enumerate(answers, start=1):
            text.write(json.dumps({"history": number, **asdict(answer)}, ensure_ascii=False) + "\n")
    write_bytes(path, text.getvalue().encode())


def load_index(path: Path, recommender: Recommender) -> ItemIndex:
    """A graph or a scan, as the note beside the file says. Raises `FileError`."""
    vectors = recommender.vectors()[1:]
    note = verified_note(path, *vectors.shape)
    if note.get("kind") == SCAN:
        return ScanIndex.load(path, vectors)
    return GraphIndex.load(path, *vectors.shape)


def _words(line: str) -> list[str]:
    """Ids between commas; one that holds a comma itself stands in quotes, as in CSV. Raises `ConfigError`."""
    try:
        parts = next(csv.reader([line], skipinitialspace=True), []) if '"' in line else line.split(",")
    except csv.Error as error:
        raise ConfigError(
            f"history {line[:40]!r}... cannot be read: {error}; is a quote not closed?"
        ) from error
    return [word for word in (part.strip() for part in parts) if word]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest(RunOptions):
    """What `fewer recommend export` is asked."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: Path
    """Folder of a trained model."""
    output: Path
    """Folder for encoder.onnx, item_vectors.safetensors and items.json."""
    index: bool = False
    """Also build an index for `suggest --index`."""
    index_kind: Literal["scan", "graph"] = "scan"
    """`scan`: faiss, two bits a channel, built in seconds; `graph`: hnswlib, quicker on clustered items."""
    neighbours: Annotated[int, Field(ge=2, le=256)] = 24
    """Of an item in the graph: more is better and slower."""
    build_width: Annotated[int, Field(ge=8, le=4096)] = 200
    """Candidates looked at for each item while the graph is built."""


def export_command(request: ExportRequest, progress: Progress) -> dict[str, object]:
    """Writes the ONNX encoder with its parity against PyTorch, the vectors, and the index if asked."""
    from fewer.recommend.serving.export import export_onnx

    recommender = Recommender.load(request.model)
    exported = export_onnx(recommender, request.output)
    result: dict[str, object] = {
        "output": str(request.output),
        "encoder": str(exported.encoder),
        "largest_difference": exported.largest_difference,
        "items": recommender.item_count,
    }
    if request.index:
        progress.say(f"building the {request.index_kind} index over {recommender.item_count} items")
        vectors = recommender.vectors()[1:]
        if request.index_kind == "scan":
            path, index = request.output / "items.scan", ScanIndex(vectors)
        else:
            plan = GraphPlan(neighbours=request.neighbours, build_width=request.build_width)
            path, index = request.output / "items.hnsw", GraphIndex(vectors, plan, request.seed)
        index.save(path)
        result["index"] = str(path)
    return result
