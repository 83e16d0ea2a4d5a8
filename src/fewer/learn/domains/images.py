"""Pictures of several domains: `root/<domain>/<class>/<picture>`, the layout of PACS, VLCS, OfficeHome,
TerraIncognita, DomainNet and of any own data; or a folder of sheets like data/emoji-styles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64
from torch import Tensor

from fewer.core.errors import ConfigError, DataError, FileError
from fewer.core.files import read_image
from fewer.learn.data import LabelledImages, make_labelled_images
from fewer.learn.picture_files import (
    Fit,
    fitted,
    folders_in,
    is_unlabelled,
    pictures_in,
)
from fewer.learn.sixteen_bits import SixteenBits

KNOWN_LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "PACS": ("art_painting", "cartoon", "photo", "sketch"),
    "VLCS": ("Caltech101", "LabelMe", "SUN09", "VOC2007"),
    "OfficeHome": ("Art", "Clipart", "Product", "Real World"),
    "TerraIncognita": ("location_100", "location_38", "location_43", "location_46"),
    "DomainNet": ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
}
"""Domain folders of DomainBed's data sets, in its order (sorted by name)."""

UNREADABLE = 0.01  # share of pictures that may be damaged


@dataclass(frozen=True, slots=True)
class Domains:
    """The same classes seen in several domains; all pictures have one size."""

    names: tuple[str, ...]
    images: tuple[LabelledImages, ...]
    """One entry for each domain, all with the same class names."""
    objects: tuple[Int64[Tensor, " n"], ...] | None = None
    """Which object each picture shows, where one object appears in several domains; splits go by object."""
    unseen: tuple[Bool[Tensor, " n"], ...] | None = None
    """True for objects that no domain may train or validate on: the new objects of the headline figure."""
    notes: tuple[str, ...] = ()
    """What was odd about the data, for people."""
    name: str = "domains"
    fit: Fit = "squeeze"
    """How pictures came to their size."""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.images):
            raise DataError(f"{len(self.names)} domain names for {len(self.images)} sets of pictures")
        first = self.images[0]
        for name, data in zip(self.names, self.images, strict=True):
            if data.class_names != first.class_names:
                odd = sorted(set(data.class_names) ^ set(first.class_names))[:10]
                raise DataError(f"domain {name!r} has other classes than {self.names[0]!r}: {', '.join(odd)}")
            if data.images.shape[1:] != first.images.shape[1:]:
                raise DataError(
                    f"domain {name!r} has pictures of {tuple(data.images.shape[1:])}, "
                    f"{self.names[0]!r} of {tuple(first.images.shape[1:])}; give --image-size"
                )

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.images[0].class_names

    def fingerprint(self) -> str:
        """SHA-256 over the names of the domains, their pictures, labels, objects and splits."""
        digest = hashlib.sha256(json.dumps([self.names, self.class_names]).encode())
        for data in self.images:
            digest.update(data.fingerprint().encode())
        for part in (*(self.objects or ()), *(self.unseen or ())):
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def index(self, name: str) -> int:
        """A domain's number. Raises `ConfigError` listing the names there are."""
        if name not in self.names:
            raise ConfigError(f"domain {name!r} is not in the data; allowed: {', '.join(self.names)}")
        return self.names.index(name)


def load_domains(
    path: Path | str, *, size: int | None = None, task: str = "group8", fit: Fit = "squeeze"
) -> Domains:
    """Reads a folder of domains, or of sheets with a `labels.csv` (`task`: group8, subgroup, identity).

    `size` resizes every picture, `fit` says how. Unreadable pictures are skipped and counted. Raises
    `FileError` when the folder is missing, `DataError` when more than 1 % of the pictures are unreadable, a
    domain has other classes than the rest, pictures differ in size, or there are fewer than two domains.
    """
    path = Path(path)
    if not path.exists():
        raise FileError(f"{path.name!r} is not there; check the path", missing=True)
    if not path.is_dir():
        raise ConfigError(
            f"{path.name!r} is a file; domains come from a folder domain/class/*.png "
            "(or an MNIST file with --make colored-mnist or rotated-mnist)"
        )
    if (path / "labels.csv").exists():
        from fewer.learn.domains.sheets import load_sheets

        return load_sheets(path, task=task, size=size)
    return _load_folders(path, size, fit)


def _load_folders(root: Path, size: int | None, fit: Fit) -> Domains:
    found = folders_in(root)
    # What unpacking leaves beside the domains (lists of splits, __MACOSX) has no class folders.
    folders = [folder for folder in found if any(not is_unlabelled(entry) for entry in folders_in(folder))]
    if len(folders) < 2:
        raise DataError(
            f"{root.name}: {len(folders)} domain folders found; invariant learning needs at least 2 source "
            "domains and 1 target, as domain/class/*.png"
        )
    classes = {
        folder.name: tuple(entry.name for entry in folders_in(folder) if not is_unlabelled(entry))
        for folder in folders
    }
    names, notes = _shared_classes(classes)
    notes += [
        f"domain {folder.name!r}: the pictures without a label in {entry.name!r} are not used"
        for folder in folders
        for entry in filter(is_unlabelled, folders_in(folder))
    ]
    notes += [f"{one.name!r} holds no class folder and is no domain" for one in found if one not in folders]
    counts = {folder.name: [len(pictures_in(folder / name, root)) for name in names] for folder in folders}
    for domain, row in counts.items():
        empty = [name for name, count in zip(names, row, strict=True) if count == 0]
        if empty:
            per_class = ", ".join(f"{n} {c}" for n, c in zip(names, row, strict=True))
            notes.append(f"domain {domain!r} has no picture of {', '.join(empty)} (it has {per_class})")
    reader = _Reader(size, fit)
    read = [reader.read(folder, names) for folder in folders]
    reader.check(root.name)
    if reader.failed:
        notes.append(f"{len(reader.failed)} unreadable pictures were skipped, first {reader.failed[0]}")
    grey = all(bool((pixels[..., :1] == pixels).all()) for pixels, _ in read)
    images = tuple(
        make_labelled_images(pixels[..., :1] if grey else pixels, labels, names, folder.name)
        for folder, (pixels, labels) in zip(folders, read, strict=True)
    )
    return Domains(
        tuple(folder.name for folder in folders), images, notes=tuple(notes), name=root.name, fit=fit
    )


def _shared_classes(classes: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], list[str]]:
    """The union of the domains' classes. A domain may lack some; one that has classes of its own *and* lacks
    those of the others names them differently, which is an error."""
    union = sorted({name for names in classes.values() for name in names})
    for domain, names in classes.items():
        others = {name for other, found in classes.items() if other != domain for name in found}
        own, missing = sorted(set(names) - others), sorted(others - set(names))
        if own and missing:
            raise DataError(
                f"domain {domain!r} names its classes differently: only there {', '.join(own[:8])}; "
                f"missing there {', '.join(missing[:8])}; rename the folders"
            )
    if len(union) < 2:
        raise DataError(
            f"{len(union)} class folder found; a classifier needs at least 2, as domain/class/*.png"
        )
    return tuple(union), []


class _Reader:
    """Reads pictures to one size and counts those that cannot be read."""

    def __init__(self, size: int | None, fit: Fit) -> None:
        self.size, self.fit, self.shape, self.count = size, fit, None, 0
        self.failed: list[str] = []

    def read(self, folder: Path, names: Sequence[str]) -> tuple[np.ndarray, list[int]]:
        arrays, labels, deep = [], [], SixteenBits()
        for label, name in enumerate(names):
            for file in pictures_in(folder / name, folder.parent):
                self.count += 1
                try:
                    picture = read_image(file)
                except FileError:
                    self.failed.append(f"{folder.name}/{name}/{file.name}")
                    continue
                deep.note(file, f"{name}/{file.name}", picture, len(arrays))
                if self.size is not None:
                    picture = fitted(picture, (self.size, self.size), self.fit)
                self.shape = self.shape or picture.size
                if picture.size != self.shape:
                    raise DataError(
                        f"{folder.name}/{name}/{file.name} is {picture.size[0]}x{picture.size[1]} pixels, "
                        f"others are {self.shape[0]}x{self.shape[1]}; give --image-size to resize all of them"
                    )
                arrays.append(np.asarray(picture, dtype=np.uint8))
                labels.append(label)
        deep.settle(arrays, folder.name)
        if not arrays:
            raise DataError(f"domain {folder.name!r} has no readable picture in its class folders")
        return np.stack(arrays), labels

    def check(self, source: str) -> None:
        """Raises `DataError` when too many were unreadable."""
        if len(self.failed) > UNREADABLE * self.count:
            raise DataError(
                f"{source}: {len(self.failed)} of {self.count} pictures cannot be read (at most 1 % may be), "
                f"first {self.failed[0]}"
            )
