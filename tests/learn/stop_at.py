"""Ctrl-C at a chosen step, for tests of resuming."""


class Stop(Exception):
    """What `StopAt` raises."""


class StopAt:
    """A progress that ends the run after some steps, as Ctrl-C would."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def start(self, what: str, total: int) -> None: ...
    def stop(self) -> None: ...
    def say(self, text: str) -> None: ...

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.left -= steps
        if self.left == 0:
            raise Stop
