"""Results as people compare them: paired differences with intervals, a table per selection rule, LaTeX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev

from fewer.core.errors import DataError


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of paired differences with its 95 % interval (Student's t)."""

    mean: float
    low: float | None
    """None with a single pair."""
    high: float | None
    pairs: int

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)

    def sentence(self, ours: str, theirs: str) -> str:
        """What a user may conclude, in one sentence."""
        if self.low is None or self.high is None:
            return (
                f"{ours} - {theirs}: {self.mean:+.1f} points in one run, which proves nothing; use --seeds 3"
            )
        interval = f"{self.mean:+.1f} points, 95 % interval {self.low:+.1f} .. {self.high:+.1f}"
        if self.low > 0:
            return f"{ours} is better than {theirs} ({interval}, {self.pairs} pairs)"
        if self.high < 0:
            return f"{ours} is WORSE than {theirs} ({interval}, {self.pairs} pairs); use {theirs}"
        return f"no difference between {ours} and {theirs} is shown ({interval}, {self.pairs} pairs)"


def paired_difference(differences: Sequence[float]) -> Difference:
    """Mean and 95 % interval of differences between runs that shared seed, split and batches.

    Raises `DataError` when there are none.
    """
    if not differences:
        raise DataError("there are no pairs of runs to compare")
    middle = mean(differences)
    if len(differences) == 1:
        return Difference(middle, None, None, 1)
    from scipy.stats import t

    count = len(differences)
    half = float(t.ppf(0.975, count - 1)) * stdev(differences) / math.sqrt(count)
    return Difference(middle, middle - half, middle + half, count)


@dataclass(frozen=True, slots=True)
class Cell:
    """Accuracy of one method on one target over seeds, in per cent; `error` is the standard error."""

    mean: float
    error: float | None
    runs: int

    def text(self, plus_minus: str = "±") -> str:
        return f"{self.mean:.1f}" + (f" {plus_minus} {self.error:.1f}" if self.error is not None else "")


def cell(accuracies: Sequence[float]) -> Cell:
    """From accuracies in 0 .. 1."""
    values = [100 * value for value in accuracies]
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Cell(mean(values), error, len(values))


Table = dict[str, dict[str, Cell]]
"""Method -> target -> cell; the column `average` is over targets, its error over seeds."""


def accuracy_table(accuracies: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Table:
    """From method -> target -> seed -> accuracy (0 .. 1). The average is over seeds that all targets have."""
    table: Table = {}
    for method, by_target in accuracies.items():
        row = {target: cell(list(by_seed.values())) for target, by_seed in by_target.items()}
        shared = set.intersection(*(set(by_seed) for by_seed in by_target.values()))
        if shared:
            row["average"] = cell(
                [mean(by_seed[seed] for by_seed in by_target.values()) for seed in sorted(shared)]
            )
        table[method] = row
    return table


def differences(
    accuracies: Mapping[str, Mapping[str, Mapping[int, float]]], ours: str, theirs: str
) -> list[float]:
    """Points by which `ours` exceeds `theirs`, for every (target, seed) that both have."""
    return [
        100 * (value - accuracies[theirs][target][seed])
        for target, by_seed in accuracies[ours].items()
        for seed, value in by_seed.items()
        if seed in accuracies[theirs].get(target, {})
    ]


def latex_table(table: Table, caption: str) -> str:
    """A booktabs table; the best mean of a column is bold."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    best = {c: max(row[c].mean for row in table.values() if c in row) for c in columns}
    lines = [
        r"\begin{table}",
        rf"\caption{{{_escaped(caption)}}}",
        r"\begin{tabular}{l" + "c" * len(columns) + "}",
        r"\toprule",
        " & ".join(["Method", *(_escaped(column) for column in columns)]) + r" \\",
        r"\midrule",
    ]
    for method, row in table.items():
        cells = []
        for column in columns:
            text = row[column].text(r"$\pm$") if column in row else "--"
            bold = column in row and row[column].mean == best[column]
            cells.append(rf"\textbf{{{text}}}" if bold else text)
        lines.append(" & ".join([_escaped(method), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _escaped(text: str) -> str:
    marks = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(marks.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
