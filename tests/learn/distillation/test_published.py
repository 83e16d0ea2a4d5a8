import pytest
import torch

from fewer.core.errors import DataError, FileError
from fewer.learn.distillation.published import published_set, published_tensors
from tests.learn.distillation.conftest import make_pictures


def test_the_forms_of_the_published_files() -> None:
    dc = {"data.0.0": torch.zeros(1), "data.0.1": torch.ones(1), "data.1.0": torch.full((1,), 2.0)}
    images, labels = published_tensors(dc, 0)
    assert (images.item(), labels.item()) == (0.0, 1.0)  # pyright: ignore
    assert published_tensors(dc)[0].item() == 2.0
    assert published_tensors({"": torch.ones(3)})[0].tolist() == [1, 1, 1]
    with pytest.raises(FileError, match="run 5"):
        published_tensors(dc, 5)
    with pytest.raises(FileError, match="no known form"):
        published_tensors({"a": torch.ones(1), "b": torch.ones(1)})


def test_pictures_come_back_sorted_by_class_and_as_they_were() -> None:
    data = make_pictures(count=30)
    images, labels = torch.randn(6, 1, 8, 8), torch.tensor([2, 0, 1, 0, 1, 2])
    made = published_set(images, labels, data, method="dc")
    assert made.labels.tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(made.normalised(), images[[1, 3, 2, 4, 0, 5]])
    assert made.datasheet.class_names == data.class_names
    assert "ZCA" in " ".join(made.datasheet.warnings)


def test_grey_pictures_may_have_been_distilled_as_rgb() -> None:
    data, images = make_pictures(count=30), torch.randn(3, 3, 8, 8)
    made = published_set(images, torch.arange(3), data, method="dc")
    grey = published_set(images[:, :1], torch.arange(3), data, method="dc")
    assert made.datasheet.channels == 3 and torch.equal(made.mean, grey.mean.expand(3))
    torch.testing.assert_close(made.normalised(), images)


def test_soft_labels_are_probabilities_or_logits() -> None:
    data, images = make_pictures(count=30), torch.randn(3, 1, 8, 8)
    logits = torch.tensor([[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]])
    from_logits = published_set(images, logits, data, method="datm")
    from_shares = published_set(images, logits.softmax(1), data, method="datm", learned_rate=0.02)
    torch.testing.assert_close(from_logits.targets(), from_shares.targets())
    assert from_shares.recipe().learning_rate == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(3, 8, 8), torch.arange(3), "shape"),
        (torch.zeros(3, 2, 8, 8), torch.arange(3), "2 channels; 1"),
        (torch.zeros(3, 1, 8, 8), torch.arange(4), "4 labels"),
        (torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 7]), "0 .. 7"),
        (torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 1]), "no distilled picture"),
        (torch.zeros(3, 1, 8, 8), torch.rand(3, 5), "5 classes"),
        (torch.full((3, 1, 8, 8), float("nan")), torch.arange(3), "images"),
    ],
)
def test_what_does_not_fit_is_refused(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        published_set(images, labels, make_pictures(count=30), method="dc")
