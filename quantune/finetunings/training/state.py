"""The saved state of a training: all that the next step depends on."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from quantune.finetunings.training import optimizers

CHECKSUM = 32  # bytes of the SHA-256 before a saved state


@dataclass
class Progress:
    """The part of a saved state that is neither weights nor optimizer."""

    step: int = 0
    curves: list[dict[str, float | int | None]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Training losses since the last point of the curves."""
    skipped: int = 0
    """Steps that were skipped because a gradient was not finite; only in float16."""
    best: dict[str, Any] = field(default_factory=dict)
    """Step, validation loss and trained weights of the point with the lowest validation loss, if these are kept."""


def save(
    scratch: Path, progress: Progress, trained: dict[str, torch.Tensor], parts: dict[str, Any], made_by: str
) -> None:
    """Save all that the next step depends on, after its SHA-256; the state on disk is always complete.

    Args:
        scratch: where the state is saved.
        progress: steps, curves and losses.
        trained: name -> trained weights.
        parts: name -> what else has a state: optimizer, schedule of the learning rate, scaler of the loss.
        made_by: recipe, seed and data as text; `restore` takes only a state of the same ones.
    """
    state = {
        "made_by": made_by,
        "progress": vars(progress),
        "trained": copied(trained),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    partial = scratch / "state.partial"
    with partial.open("wb+") as file:
        file.write(bytes(CHECKSUM))
        torch.save(state, file)
        file.seek(CHECKSUM)
        checksum = hashlib.file_digest(file, "sha256").digest()
        file.seek(0)
        file.write(checksum)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(scratch / "state.pt")


def restore(
    scratch: Path, trained: dict[str, torch.Tensor], parts: dict[str, Any], made_by: str = ""
) -> Progress | None:
    """Restore the last saved state, and return its progress; None if none is saved, or the saved one cannot be used."""
    try:
        state = _read_state(scratch / "state.pt", made_by)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        print(f"the saved state of the training cannot be used ({error}); it begins at step 0")
        return None
    take(trained, state["trained"])
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    optimizers.page(parts["optimizer"])
    torch.set_rng_state(state["random"])
    if state["random_cuda"]:
        torch.cuda.set_rng_state_all(state["random_cuda"])
    return Progress(**state["progress"])


def copied(trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a copy of the trained weights in main memory."""
    return {name: value.detach().to("cpu", copy=True) for name, value in trained.items()}


@torch.no_grad()
def take(trained: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> None:
    """Give the trained weights the values of a copy."""
    for name, value in trained.items():
        value.copy_(values[name])


def _read_state(path: Path, made_by: str) -> dict[str, Any]:
    """Return a saved state; raises ValueError if it is damaged, or was saved by another recipe."""
    with path.open("rb") as file:
        checksum = file.read(CHECKSUM)
        if checksum != hashlib.file_digest(file, "sha256").digest():
            raise ValueError("it does not match its checksum")
        file.seek(CHECKSUM)
        state = torch.load(file, map_location="cpu", weights_only=True)
    if state["made_by"] != made_by:
        raise ValueError("another recipe saved it")
    if "parts" not in state:
        raise ValueError("an earlier version saved it")
    return state
