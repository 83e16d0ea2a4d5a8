"""Folders of domains: what is read, what is refused (spec section 7, bad input)."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewer.core.errors import ConfigError, DataError, FileError
from fewer.learn.domains.images import KNOWN_LAYOUTS, Domains, load_domains


def write(root: Path, domain: str, name: str, count: int = 3, mode: str = "RGB", side: int = 8) -> None:
    folder = root / domain / name
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(len(domain) + len(name))
    for number in range(count):
        pixels = generator.integers(0, 255, (side, side, 4), dtype=np.uint8)
        picture = Image.fromarray(pixels, "RGBA").convert(mode)
        picture.save(folder / f"{number}.png")


@pytest.mark.parametrize("layout", sorted(KNOWN_LAYOUTS))
def test_the_layouts_of_domainbed(layout: str, tmp_path: Path) -> None:
    names = KNOWN_LAYOUTS[layout]
    assert list(names) == sorted(names)
    for domain in names:
        for name in ("dog", "guitar"):
            write(tmp_path / layout, domain, name)
    domains = load_domains(tmp_path / layout)
    assert domains.names == names
    assert domains.class_names == ("dog", "guitar")
    assert [len(data) for data in domains.images] == [6] * len(names)
    assert domains.name == layout
    with pytest.raises(ConfigError, match=names[0]):
        domains.index("nowhere")


def test_grey_and_transparent_pictures_are_converted(tmp_path: Path) -> None:
    for domain, mode in (("a", "L"), ("b", "RGBA")):
        for name in ("x", "y"):
            write(tmp_path, domain, name, mode=mode)
    domains = load_domains(tmp_path)
    assert [data.channels for data in domains.images] == [3, 3]


def test_all_grey_stays_grey_and_sizes_are_made_one(tmp_path: Path) -> None:
    for domain, side in (("a", 8), ("b", 9)):
        for name in ("x", "y"):
            write(tmp_path, domain, name, mode="L", side=side)
    with pytest.raises(DataError, match="--image-size"):
        load_domains(tmp_path)
    domains = load_domains(tmp_path, size=5)
    assert {data.images.shape[1:] for data in domains.images} == {(5, 5, 1)}


def test_a_missing_class_is_told_with_counts(tmp_path: Path) -> None:
    for domain in ("a", "b", "c"):
        write(tmp_path, domain, "x")
        if domain != "c":
            write(tmp_path, domain, "y")
    domains = load_domains(tmp_path)
    assert domains.notes == ("domain 'c' has no picture of y (it has x 3, y 0)",)


def test_pictures_without_a_label_are_no_class(tmp_path: Path) -> None:
    for domain in ("a", "b"):
        for name in ("x", "y"):
            write(tmp_path, domain, name)
    write(tmp_path, "a", "Unlabelled")
    write(tmp_path, "unlabelled", "")
    domains = load_domains(tmp_path)
    assert domains.names == ("a", "b") and domains.class_names == ("x", "y")
    assert any("'a': the pictures without a label in 'Unlabelled' are not used" in n for n in domains.notes)


def test_other_class_names_are_refused_with_the_differences(tmp_path: Path) -> None:
    for domain in ("a", "b"):
        for name in ("x", "y"):
            write(tmp_path, domain, name)
    for name in ("x", "why"):
        write(tmp_path, "c", name)
    with pytest.raises(
        DataError, match=r"'c' names its classes differently: only there why; missing there y"
    ):
        load_domains(tmp_path)


def test_unreadable_pictures_are_skipped_up_to_one_per_cent(tmp_path: Path) -> None:
    for domain in ("a", "b"):
        for name in ("x", "y"):
            write(tmp_path, domain, name, count=26, side=4)
    (tmp_path / "a" / "x" / "3.png").write_bytes(b"no picture")
    domains = load_domains(tmp_path)
    assert domains.notes == ("1 unreadable pictures were skipped, first a/x/3.png",)
    assert len(domains.images[0]) == 51
    (tmp_path / "b" / "y" / "4.png").write_bytes(b"")
    with pytest.raises(DataError, match="2 of 104 pictures cannot be read"):
        load_domains(tmp_path)


def test_what_is_no_folder_of_domains(tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        load_domains(tmp_path / "nothing")
    assert caught.value.exit_code == 4
    (tmp_path / "file.npz").write_bytes(b"x")
    with pytest.raises(ConfigError, match="--make"):
        load_domains(tmp_path / "file.npz")
    write(tmp_path / "one", "a", "x")
    with pytest.raises(DataError, match="1 domain folder"):
        load_domains(tmp_path / "one")


def test_domains_must_fit_each_other(domains: Domains) -> None:
    with pytest.raises(DataError, match="2 domain names for 3"):
        Domains(("a", "b"), domains.images)


def test_what_unpacking_leaves_beside_the_domains_is_no_domain(tmp_path: Path) -> None:
    for domain in ("a", "b", "c"):
        for name in ("x", "y"):
            write(tmp_path, domain, name)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text("a/x/0.png 0\n")
    (tmp_path / "readme.txt").write_text("three domains")
    (tmp_path / "a" / "x" / "Thumbs.db").write_bytes(b"\0" * 100)
    (tmp_path / "a" / "x" / "._0.png").write_bytes(b"\0" * 100)
    domains = load_domains(tmp_path)
    assert domains.names == ("a", "b", "c")
    assert domains.notes == ("'splits' holds no class folder and is no domain",)
    assert [len(data) for data in domains.images] == [6, 6, 6]
