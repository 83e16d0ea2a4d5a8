import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from fewer.core.errors import DataError, FileError
from fewer.learn.domains.digits import COLOURS, colored_mnist, read_mnist, rotated_mnist


def digits(count: int = 3000, side: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 255, (count, side, side), generator=generator).to(torch.uint8)
    return images, torch.arange(count) % 10


def test_colored_mnist_has_domainbed_s_probabilities() -> None:
    images, labels = digits()
    domains = colored_mnist((images, labels), seed=3)
    assert domains.names == tuple(COLOURS)
    assert domains.name == "ColoredMNIST-3k"
    assert [len(data) for data in domains.images] == [1000] * 3
    for data, flip in zip(domains.images, COLOURS.values(), strict=True):
        red = data.images[..., 0].flatten(1).any(1)
        green = data.images[..., 1].flatten(1).any(1)
        assert (red ^ green).all()  # one colour a digit
        assert data.images[..., 2].max() == 0
        agrees = (green.long() == data.labels).float().mean()
        assert abs(float(agrees) - (1 - flip)) < 0.05


def test_colored_mnist_flips_a_quarter_of_the_labels() -> None:
    images, labels = digits()
    images = (labels[:, None, None] + 1).expand(-1, 6, 6).to(torch.uint8)  # the digit can be read off
    for data in colored_mnist((images.contiguous(), labels)).images:
        digit = data.images.amax((1, 2, 3)).long() - 1
        assert abs(float(((digit < 5).long() != data.labels).float().mean()) - 0.25) < 0.05


def test_rotated_mnist_turns_and_keeps_labels() -> None:
    images, labels = digits(120, side=9)
    domains = rotated_mnist((images, labels))
    assert domains.names == ("0", "15", "30", "45", "60", "75")
    assert sum(len(data) for data in domains.images) == 120
    total = torch.cat([data.labels for data in domains.images])
    assert torch.equal(torch.bincount(total), torch.full((10,), 12))
    upright = {tuple(image.flatten().tolist()) for image in images}
    assert all(tuple(i.flatten().tolist()) in upright for i in domains.images[0].images[..., 0])
    assert domains.images[3].images[:, 0, 0].float().mean() < 60  # a corner is empty after 45 degrees
    assert rotated_mnist((images, labels), size=5).images[0].size == (5, 5)


@pytest.mark.parametrize("compressed", [True, False])
def test_idx_files(compressed: bool, tmp_path: Path) -> None:
    images, labels = digits(7)
    suffix = ".gz" if compressed else ""
    pack = gzip.compress if compressed else bytes
    header = b"".join(n.to_bytes(4, "big") for n in (0x803, 7, 6, 6))
    path = tmp_path / f"t10k-images-idx3-ubyte{suffix}"
    path.write_bytes(pack(header + images.numpy().tobytes()))
    header = b"".join(n.to_bytes(4, "big") for n in (0x801, 7))
    (tmp_path / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(
        pack(header + labels.numpy().astype(np.uint8).tobytes())
    )
    read_images, read_labels = read_mnist(path)
    assert torch.equal(read_images, images)
    assert torch.equal(read_labels, labels)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileError):
        read_mnist(path)


def test_npz_files_of_both_kinds(tmp_path: Path) -> None:
    images, labels = (x.numpy() for x in digits(9))
    np.savez(tmp_path / "ours.npz", train_images=images, train_labels=labels[:, None])
    np.savez(
        tmp_path / "keras.npz", x_train=images[:5], y_train=labels[:5], x_test=images[5:], y_test=labels[5:]
    )
    for name in ("ours.npz", "keras.npz"):
        read_images, read_labels = read_mnist(tmp_path / name)
        assert np.array_equal(read_images, images)
        assert np.array_equal(read_labels, labels)
    np.savez(tmp_path / "bad.npz", x_train=images, y_train=labels + 10)
    with pytest.raises(DataError, match="digits 0"):
        read_mnist(tmp_path / "bad.npz")
    np.savez(tmp_path / "none.npz", a=images)
    with pytest.raises(DataError, match="no train_images"):
        read_mnist(tmp_path / "none.npz")
    with pytest.raises(DataError, match="too few"):
        colored_mnist(digits(9))
