"""The training loop, the same for every method and track: what is trained is what requires gradients.

It saves all that the next step depends on (weights, optimizer, schedule, random state, curves) every `save_every`
steps, atomically, and goes on from there: a killed job loses at most the steps since, and ends with the same bits as an
uninterrupted one. The data order follows from seed and epoch alone.
"""

import csv
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import get_scheduler

from quantune.errors import QuantuneError
from quantune.finetunings import Finetuning

COLUMNS = ("step", "examples", "learning_rate", "train_loss", "validation_loss")


@dataclass
class Progress:
    """What a saved state remembers beside weights and optimizer."""

    step: int = 0
    curves: list[dict[str, float | int | None]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Training losses since the last point of the curves."""


def train(
    model: torch.nn.Module,
    recipe: Finetuning,
    seed: int,
    examples: int,
    batch: Callable[[list[int]], dict[str, torch.Tensor]],
    validation: list[dict[str, torch.Tensor]],
    folder: Path,
    scratch: Path,
) -> dict[str, Any]:
    """Train the model in place; write `curves.csv`.

    Args:
        model: only its parameters that require gradients are trained.
        recipe: steps, batches, optimizer and curves.
        seed: of data order and dropout.
        examples: number of training examples.
        batch: from example numbers to the arguments of the model's forward pass, `labels` among them.
        validation: batches for the validation loss; empty: none is computed.
        folder: where the curves go.
        scratch: where the state is saved; if it holds one, training goes on from there.

    Returns:
        Steps, trainable and total parameters, losses; under "run" what varies from run to run.

    Raises:
        QuantuneError: if the loss is no longer finite.
    """
    device = next(model.parameters()).device
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    per_step = recipe.batch_size * recipe.gradient_accumulation
    steps = recipe.steps or max(1, math.ceil(recipe.epochs * examples / per_step))
    optimizer = torch.optim.AdamW(trained.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    shape = "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule
    schedule = get_scheduler(shape, optimizer, recipe.warmup_steps, steps)
    progress = restore(scratch, trained, optimizer, schedule) or Progress()
    resumed, started = progress.step, time.time()
    if resumed:
        print(f"going on from step {resumed} of {steps}")
    else:
        progress.curves.append(_point(0, 0, schedule, None, mean_loss(model, validation, device)))
        torch.manual_seed(seed)
    model.train()
    bar = tqdm(total=steps, initial=resumed, desc="training", unit="step")
    while progress.step < steps:
        loss = 0.0
        for part in range(recipe.gradient_accumulation):
            first = (progress.step * recipe.gradient_accumulation + part) * recipe.batch_size
            inputs = batch([_example(first + place, examples, seed) for place in range(recipe.batch_size)])
            value = model(**{name: tensor.to(device) for name, tensor in inputs.items()}).loss
            (value / recipe.gradient_accumulation).backward()
            loss += value.item() / recipe.gradient_accumulation
        if not math.isfinite(loss):
            raise QuantuneError(f"the loss is {loss} at step {progress.step + 1}; lower 'learning_rate'")
        torch.nn.utils.clip_grad_norm_(trained.values(), recipe.max_gradient_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.losses.append(loss)
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        last = progress.step == steps
        if last or progress.step % recipe.evaluate_every == 0:
            held_out = mean_loss(model, validation, device)
            mean = sum(progress.losses) / len(progress.losses)
            progress.curves.append(_point(progress.step, progress.step * per_step, schedule, mean, held_out))
            progress.losses.clear()
            shown = "" if held_out is None else f", validation {held_out:.4f}"
            tqdm.write(f"step {progress.step}: training loss {mean:.4f}{shown}")
        if not last and progress.step % recipe.save_every == 0:
            save(scratch, progress, trained, optimizer, schedule)
    bar.close()
    write_curves(folder / "curves.csv", progress.curves)
    seconds = max(time.time() - started, 1e-9)
    return {
        "steps": steps,
        "examples": steps * per_step,
        "train_loss": progress.curves[-1]["train_loss"],
        "validation_loss": progress.curves[-1]["validation_loss"],
        "run": {"steps_per_second": round((steps - resumed) / seconds, 3), "resumed_from_step": resumed},
    }


@torch.no_grad()
def mean_loss(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]], device: torch.device) -> float | None:
    """Return the mean loss over batches of equal size, without dropout; None if there are none."""
    if not batches:
        return None
    was_training = model.training
    model.eval()
    losses = [model(**{name: value.to(device) for name, value in batch.items()}).loss.item() for batch in batches]
    model.train(was_training)
    return sum(losses) / len(losses)


def save(scratch: Path, progress: Progress, trained: dict[str, torch.Tensor], optimizer, schedule) -> None:
    """Save all that the next step depends on; the state on disk is always a whole one."""
    state = {
        "progress": vars(progress),
        "trained": {name: value.detach().cpu() for name, value in trained.items()},
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    partial = scratch / "state.partial"
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(scratch / "state.pt")


def restore(scratch: Path, trained: dict[str, torch.Tensor], optimizer, schedule) -> Progress | None:
    """Put back the last saved state, and return its progress; None where there is none."""
    path = scratch / "state.pt"
    if not path.exists():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(state["trained"][name])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["random"])
    if state["random_cuda"]:
        torch.cuda.set_rng_state_all(state["random_cuda"])
    return Progress(**state["progress"])


def write_curves(path: Path, curves: list[dict[str, Any]]) -> None:
    """Write the points of the loss curves; a loss that was not computed is left empty."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(curves)


_orders: dict[tuple[int, int, int], list[int]] = {}


def _example(position: int, examples: int, seed: int) -> int:
    """Return the number of the example at a position of the endless training sequence."""
    epoch, place = divmod(position, examples)
    key = (seed, epoch, examples)
    if key not in _orders:
        _orders.clear()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        _orders[key] = torch.randperm(examples, generator=generator).tolist()
    return _orders[key][place]


def _point(step: int, examples: int, schedule, train_loss: float | None, validation_loss: float | None) -> dict:
    values = (step, examples, schedule.get_last_lr()[0], train_loss, validation_loss)
    return dict(zip(COLUMNS, values, strict=True))
