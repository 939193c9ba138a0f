"""The batch sizes that an exported network takes: one, or a range with the size to be fastest at."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.errors import UsageError

OPSETS = range(17, 24)


@dataclass(frozen=True)
class Profile:
    """lowest <= best <= highest; all equal is a fixed batch."""

    lowest: int
    best: int
    highest: int

    @property
    def fixed(self) -> bool:
        """Whether the batch is written into the graph."""
        return self.lowest == self.highest

    def __str__(self) -> str:
        return str(self.best) if self.fixed else f"{self.lowest}:{self.best}:{self.highest}"


def check_opset(opset: int) -> None:
    """UsageError for an opset that nothing here exports."""
    if opset not in OPSETS:
        raise UsageError(
            f"--opset {opset}: expected {OPSETS.start} to {OPSETS.stop - 1}; 20 suits TensorRT 10 and 11"
        )


def parse(text: str) -> Profile:
    """Read "1", "8" or "1:8:32" (lowest:best:highest); UsageError says what was received."""
    parts = text.split(":")
    if len(parts) in (1, 3) and all(p.isascii() and p.isdigit() for p in parts):
        numbers = [int(p) for p in parts] * (3 if len(parts) == 1 else 1)
        if 1 <= numbers[0] <= numbers[1] <= numbers[2]:
            return Profile(*numbers)
    raise UsageError(f"--batch {text}: expected a number, or lowest:best:highest such as 1:8:32")
