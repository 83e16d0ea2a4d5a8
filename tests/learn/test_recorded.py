"""Recorded work does what called work does, form by form, and a recording leaves no trace."""

import pytest
import torch

from fewer.learn.recorded import RecordedWork


class Counter:
    """Adds `step` to a total, and remembers how often in a tensor that the first call makes."""

    def __init__(self, device: str) -> None:
        self.total = torch.zeros(3, device=device)
        self.made: dict[str, torch.Tensor] = {}
        self.calls = 0

    def state(self) -> dict[str, torch.Tensor]:
        return {"total": self.total, **self.made}

    def add(self, step: float) -> None:
        self.calls += 1
        self.made.setdefault("times", torch.zeros(1, device=self.total.device)).add_(1)
        self.total.add_(step)


def run(device: str) -> Counter:
    counter = Counter(device)
    recorded = RecordedWork(torch.device(device), counter.state)
    for form in ("one", "one", "ten", "one", "ten"):
        recorded(form, lambda step=1.0 if form == "one" else 10.0: counter.add(step))
    return counter


def test_work_on_the_cpu_is_called() -> None:
    counter = run("cpu")
    assert counter.total.tolist() == [23.0] * 3
    assert counter.made["times"].item() == 5
    assert counter.calls == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_recorded_work_is_replayed() -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        counter = run("cuda")
        assert counter.total.tolist() == [23.0] * 3
        assert counter.made["times"].item() == 5
    assert counter.calls == 4  # twice for each of two forms


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_work_that_cannot_be_recorded_is_called() -> None:
    total = torch.zeros(1, device="cuda")
    recorded = RecordedWork(total.device, lambda: {"total": total})
    for _ in range(3):  # a read by the host ends a recording
        recorded("waits", lambda: total.add_(2.0 + 0.0 * total.sum().item()))
    assert total.item() == 6.0
    assert not recorded.records
