"""A training that was saved and restored goes on to the same bits."""

from dataclasses import replace

import pytest
import torch

from fewer.core.errors import FileError
from fewer.learn.domains.training import MaskedTraining
from fewer.learn.domains.training_state import restore_training, training_state, under
from tests.learn.domains.test_training import PLAN, run


@pytest.mark.parametrize("stop", [3, 7, 10, 11, 25])
@pytest.mark.parametrize("mode", ["faithful", "extended"])
def test_resuming_anywhere_is_bit_identical(stop: int, mode: str, toy) -> None:
    plan = replace(PLAN, mode=mode, base="group-dro")  # pyright: ignore[reportArgumentType]
    whole = MaskedTraining(toy.network(), plan, 2)
    run(whole, toy, 0, 30)
    first = MaskedTraining(toy.network(), plan, 2)
    run(first, toy, 0, stop)
    tensors, facts = training_state(first)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    second = MaskedTraining(toy.network(seed=9), plan, 2)
    restore_training(second, tensors, facts)
    run(second, toy, stop, 30)
    theirs, _ = training_state(whole)
    ours, _ = training_state(second)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert second.updates == whole.updates


def test_a_checkpoint_of_another_network_is_refused(toy) -> None:
    tensors, facts = training_state(MaskedTraining(toy.network(), PLAN, 2))
    with pytest.raises(FileError, match="another number of classes"):
        restore_training(MaskedTraining(toy.network(hidden=5), PLAN, 2), tensors, facts)


def test_names_below_a_prefix_are_those_after_its_stroke() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    assert under({"mask/a/b": one, "masks/c": two}, "mask") == {"a/b": one}
