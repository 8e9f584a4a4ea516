"""The checkpoints that stay beside the result of a training."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


class Checkpoints:
    """The newest trained weights, in folders `checkpoint-STEP` of the scratch folder until the training ends."""

    def __init__(self, scratch: Path, most: int):
        self.scratch, self.most = scratch, most

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints, in their order."""
        return sorted(int(path.name.rpartition("-")[2]) for path in self.scratch.glob("checkpoint-*"))

    def add(self, step: int, store: Callable[[Path], None]) -> None:
        """Store the weights of a step; delete the oldest checkpoints beyond the number that is kept."""
        shutil.rmtree(self.scratch / f"checkpoint-{step}", ignore_errors=True)
        store(self.scratch / f"checkpoint-{step}")
        for old in self.steps()[: -self.most]:
            shutil.rmtree(self.scratch / f"checkpoint-{old}")

    def clear(self) -> None:
        """Delete all checkpoints: another training left them."""
        for step in self.steps():
            shutil.rmtree(self.scratch / f"checkpoint-{step}")

    def link(self, folder: Path) -> list[int]:
        """Link the checkpoints into the result's folder; return their steps.

        They stay in the scratch folder too: if the job is killed before its result is whole, the next one needs them.
        """
        steps = self.steps()
        for step in steps:
            name = f"checkpoint-{step}"
            shutil.copytree(self.scratch / name, folder / name, copy_function=os.link)
        return steps
