"""Interactions: three equal-length arrays in (user, time) order, the vocabulary, and what was noticed.

`Interactions.build` takes raw columns, sorts them stably by (user, time, input order), numbers the items 1..V
(0 is padding) and writes down everything a reader of the figures should know: unsorted or equal
timestamps, duplicate rows, how often users come back to an item they already had.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
from jaxtyping import Int

from fewer.core.errors import DataError

logger = logging.getLogger(__name__)

# Above this share of repeats "the last item again" is a serious guess, and hiding seen items would
# remove the right answers (spec: the trap of listening, edit and re-order logs).
REPEAT_SHARE_KEEPS_SEEN = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Interactions:
    """`items[offsets[u]:offsets[u + 1]]` is user u's history, oldest first."""

    items: Int[np.ndarray, "interactions"]
    """Item numbers 1..V."""
    times: np.ndarray | None
    """Seconds (or any increasing number) per interaction; None when the file had no times."""
    offsets: Int[np.ndarray, "borders"]
    """Where each user's history begins; one entry more than there are users."""
    item_ids: tuple[str, ...]
    """The user's own item ids; number i is `item_ids[i - 1]`."""
    user_ids: tuple[str, ...]
    """The user's own user ids, in order of first appearance."""
    notes: tuple[str, ...] = ()
    """What was noticed on reading, in sentences."""
    _numbers: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def build(
        users: Sequence[object] | np.ndarray,
        items: Sequence[object] | np.ndarray,
        times: Sequence[float | int | datetime] | np.ndarray | None = None,
        *,
        deduplicate: bool = False,
    ) -> "Interactions":
        """From raw columns of ids (anything with `str`) and optional times, which are numbers or dates.

        Raises `DataError` for columns of different lengths, no rows, an id that is missing, or a time that is
        neither or not finite.
        """
        user_codes, user_ids = _encode(users, "user")
        item_codes, item_ids = _encode(items, "item")
        when = None if times is None else _seconds(times)
        return Interactions.from_codes(
            user_codes, user_ids, item_codes + 1, item_ids, when, deduplicate=deduplicate
        )

    @staticmethod
    def from_codes(
        user_codes: np.ndarray,
        user_ids: Sequence[str],
        item_codes: np.ndarray,
        item_ids: Sequence[str],
        times: np.ndarray | None,
        *,
        deduplicate: bool = False,
    ) -> "Interactions":
        """The same from integer codes: users 0.., items 1... Used by the readers, which stream."""
        count = len(user_codes)
        if count == 0:
            raise DataError("no interactions: at least one row of user, item is needed")
        if len(item_codes) != count or (times is not None and len(times) != count):
            raise DataError(
                f"columns differ in length: {count} users, {len(item_codes)} items"
                + ("" if times is None else f", {len(times)} times")
            )
        if times is not None and not np.isfinite(times).all():
            row = int(np.flatnonzero(~np.isfinite(times))[0])
            raise DataError(f"time of row {row + 1} is {times[row]}; every interaction needs a finite time")
        notes, order = _order(user_codes, times)
        user_codes, item_codes = user_codes[order], item_codes[order]
        times = None if times is None else times[order]
        duplicate = _duplicates(user_codes, item_codes, times)
        if duplicate.any() and deduplicate:
            keep = ~duplicate
            user_codes, item_codes = user_codes[keep], item_codes[keep]
            times = None if times is None else times[keep]
            notes.append(f"{int(duplicate.sum())} duplicate rows dropped")
        elif duplicate.any():
            notes.append(f"{int(duplicate.sum())} duplicate rows kept (drop them with --dedup)")
        offsets = np.zeros(len(user_ids) + 1, dtype=np.int64)
        np.cumsum(np.bincount(user_codes, minlength=len(user_ids)), out=offsets[1:])
        made = Interactions(
            items=item_codes.astype(np.int32),
            times=times,
            offsets=offsets,
            item_ids=tuple(item_ids),
            user_ids=tuple(user_ids),
            notes=tuple(notes),
        )
        return made._with_repeat_note()

    def _with_repeat_note(self) -> "Interactions":
        share = self.repeat_share
        verdict = (
            "seen items stay in the suggestions" if self.repeats else "seen items are left out of suggestions"
        )
        note = f"{share:.1%} of the interactions repeat an item the user already had: {verdict}"
        return replace(self, notes=(*self.notes, note))

    @property
    def item_count(self) -> int:
        return len(self.item_ids)

    @property
    def user_count(self) -> int:
        return len(self.user_ids)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def lengths(self) -> Int[np.ndarray, "users"]:
        return np.diff(self.offsets)

    @property
    def user_codes(self) -> Int[np.ndarray, "interactions"]:
        """The user number of every interaction."""
        return np.repeat(np.arange(self.user_count), self.lengths)

    @property
    def repeat_share(self) -> float:
        """Share of interactions whose item the same user had before."""
        pairs = self.user_codes.astype(np.int64) * (self.item_count + 1) + self.items
        return 1.0 - len(np.unique(pairs)) / len(pairs)

    @property
    def repeats(self) -> bool:
        """Do users come back to items? Decides whether suggestions may hold seen items."""
        return self.repeat_share > REPEAT_SHARE_KEEPS_SEEN

    def history(self, user: int) -> Int[np.ndarray, "length"]:
        """Item numbers of user number `user`, oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def numbers(self, history: Sequence[object]) -> tuple[list[int], int]:
        """A raw history of the user's own ids -> (item numbers, how many ids are unknown)."""
        if not self._numbers:
            self._numbers.update({name: i + 1 for i, name in enumerate(self.item_ids)})
        known = [self._numbers[str(one)] for one in history if str(one) in self._numbers]
        return known, len(history) - len(known)

    def popularity(self) -> Int[np.ndarray, "items_and_padding"]:
        """How often each item occurs; entry 0 (padding) is 0."""
        return np.bincount(self.items, minlength=self.item_count + 1)

    def core(self, user_minimum: int, item_minimum: int) -> "Interactions":
        """Drops rare users, then rare items and users in turn until nothing changes.

        Raises `DataError` if nothing is left.
        """
        users, items = self.user_codes, self.items.astype(np.int64)
        alive = np.bincount(users, minlength=self.user_count)[users] >= user_minimum
        before = -1
        while alive.sum() != before:
            before = int(alive.sum())
            alive &= np.bincount(items[alive], minlength=self.item_count + 1)[items] >= item_minimum
            alive &= np.bincount(users[alive], minlength=self.user_count)[users] >= user_minimum
        if not before:
            raise DataError(
                f"no user has {user_minimum} interactions with items that occur {item_minimum} times"
            )
        kept = self.select(alive)
        # what was noticed on reading stays true; the share of repeats is that of what is left
        return replace(kept, notes=(*self.notes[:-1], kept.notes[-1]))

    def select(self, keep: np.ndarray) -> "Interactions":
        """The interactions where `keep` is true, with users and items renumbered."""
        users, items = self.user_codes[keep], self.items[keep]
        kept_users, user_codes = np.unique(users, return_inverse=True)
        kept_items, item_codes = np.unique(items, return_inverse=True)
        return Interactions.from_codes(
            user_codes,
            [self.user_ids[u] for u in kept_users],
            item_codes + 1,
            [self.item_ids[i - 1] for i in kept_items],
            None if self.times is None else self.times[keep],
        )


def _encode(column: Sequence[object] | np.ndarray, what: str) -> tuple[np.ndarray, list[str]]:
    """Codes 0.. in order of first appearance, and the ids as text. Raises `DataError` for a missing id."""
    numbers: dict[str, int] = {}
    codes = np.empty(len(column), dtype=np.int64)
    for row, one in enumerate(column):
        if one is None or one != one:  # NaN is what a table has for nothing
            raise DataError(f"the {what} of row {row + 1} is {one}; every interaction needs an id")
        codes[row] = numbers.setdefault(str(one), len(numbers))
    return codes, list(numbers)


def _seconds(times: Sequence[float | int | datetime] | np.ndarray) -> np.ndarray:
    """Numbers as they are, dates as seconds since 1970. Raises `DataError`."""
    column = np.asarray(times)
    if column.dtype == object and len(column) and isinstance(column[0], datetime):
        # local time would put an autumn hour twice
        column = np.array([one.replace(tzinfo=one.tzinfo or UTC).timestamp() for one in column])
    if column.dtype.kind == "M":
        gaps = np.isnat(column)
        column = np.where(gaps, np.nan, column.astype("datetime64[us]").astype(np.int64) / 1e6)
    if column.dtype.kind not in "iufb" and column.dtype != object:
        raise DataError(f"times are {column.dtype}, e.g. {column[:1].tolist()}; numbers or dates are needed")
    try:
        return column.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"times must be numbers or dates: {error}") from error


def _order(users: np.ndarray, times: np.ndarray | None) -> tuple[list[str], np.ndarray]:
    """A stable order by (user, time, input order), and notes about what the input looked like."""
    if times is None:
        return ["no timestamps: the order of the rows is taken as time"], np.argsort(users, kind="stable")
    order = np.lexsort((times, users))  # lexsort is stable: equal times keep the input order
    notes = []
    same_user = users[order][1:] == users[order][:-1]
    if (np.diff(order)[same_user] < 0).any():
        notes.append("rows were not in time order: sorted by user and time")
    equal = int(((np.diff(times[order]) == 0) & same_user).sum())
    if equal:
        notes.append(f"{equal} interactions share a timestamp with their predecessor: input order decides")
    return notes, order


def _duplicates(users: np.ndarray, items: np.ndarray, times: np.ndarray | None) -> np.ndarray:
    """True where a row repeats its predecessor's user, item and time (the same click logged twice).

    Without times two equal rows in a row cannot be told from a true repeat and are not counted.
    """
    same = np.zeros(len(users), dtype=bool)
    if times is not None and len(users) > 1:
        order = np.lexsort((np.arange(len(users)), times, items, users))
        u, i, t = users[order], items[order], times[order]
        same[order[1:]] = (u[1:] == u[:-1]) & (i[1:] == i[:-1]) & (t[1:] == t[:-1])
    return same
