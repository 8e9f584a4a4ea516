"""The training loop, the same for every method and track: it trains the parameters that require gradients.

The gradient of a step is that of the mean loss over all its labels, into however many batches they are divided. The
loop saves all that the next step depends on (weights, optimizer, schedule, random state, curves) every `save_every`
steps, atomically, and resumes from that state. A killed job loses at most the steps since then, and ends with the same
bits as an uninterrupted one. The data order follows from seed and epoch alone.
"""

import csv
import hashlib
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import get_scheduler

from quantune.core.errors import QuantuneError
from quantune.data.batches import IGNORED, Data
from quantune.finetunings import Finetuning
from quantune.finetunings.training.precision import compile_layers, keep_masters

GROUPED = 16  # batches whose examples are sorted by length together: little padding, but a random order
CHECKSUM = 32  # bytes of the SHA-256 before a saved state
COLUMNS = ("step", "examples", "learning_rate", "train_loss", "validation_loss")


@dataclass
class Progress:
    """The part of a saved state that is neither weights nor optimizer."""

    step: int = 0
    curves: list[dict[str, float | int | None]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Training losses since the last point of the curves."""


def train(
    model: torch.nn.Module,
    recipe: Finetuning,
    seed: int,
    data: Data,
    validation: Data | None,
    folder: Path,
    scratch: Path,
) -> dict[str, Any]:
    """Train the model in place; write `curves.csv`.

    Args:
        model: only its parameters that require gradients are trained.
        recipe: steps, batches, optimizer and curves.
        seed: of data order and dropout.
        data: the training examples.
        validation: the examples of the validation loss; None: no validation loss.
        folder: where `curves.csv` is written.
        scratch: where the state is saved; if it holds one, training resumes from it.

    Returns:
        Steps, trainable and total parameters, losses; under "run" the numbers that vary from run to run.

    Raises:
        QuantuneError: if the loss is no longer finite.
    """
    if recipe.precision != "float32":
        keep_masters(model)
    if recipe.compile:
        compile_layers(model)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    per_step = recipe.batch_size * recipe.gradient_accumulation
    steps = recipe.steps or max(1, math.ceil(recipe.epochs * len(data) / per_step))
    order = Order(len(data), seed, data.lengths(), recipe.batch_size)
    options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    optimizer = torch.optim.AdamW(trained.values(), **options, fused=next(iter(trained.values())).is_cuda)
    shape = "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule
    schedule = get_scheduler(shape, optimizer, recipe.warmup_steps, steps)
    made_by = f"{recipe.identity()}, seed {seed}, {steps} steps, {len(data)} examples"
    progress = restore(scratch, trained, optimizer, schedule, made_by) or Progress()
    resumed, started = progress.step, time.time()
    if resumed:
        print(f"resuming from step {resumed} of {steps}")
    else:
        progress.curves.append(_point(0, 0, schedule, None, mean_loss(model, validation, recipe)))
        torch.manual_seed(seed)
    model.train()
    bar = tqdm(total=steps, initial=resumed, desc="training", unit="step")
    losses: list[torch.Tensor] = []  # of steps whose losses are not in `progress` yet
    while progress.step < steps:
        loss = torch.zeros((), device=model.device)
        examples = [order.example(progress.step * per_step + place) for place in range(per_step)]
        labels = data.labels(examples)
        for first in range(0, per_step, recipe.batch_size):
            chosen = examples[first : first + recipe.batch_size]
            parts = labels / data.labels(chosen)  # so that each label of the step weighs the same
            value = model(**_placed(data.batch(chosen), model)).loss
            (value / parts).backward()
            loss += value.detach() / parts
        torch.nn.utils.clip_grad_norm_(trained.values(), recipe.max_gradient_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        losses.append(loss)
        last = progress.step == steps
        measured = last or progress.step % recipe.evaluate_every == 0
        saved = not last and progress.step % recipe.save_every == 0
        _collect(losses, progress, wait=measured or saved)
        bar.update()
        if progress.losses:
            bar.set_postfix(loss=f"{progress.losses[-1]:.3f}", refresh=False)
        if measured:
            held_out = mean_loss(model, validation, recipe)
            mean = sum(progress.losses) / len(progress.losses)
            progress.curves.append(_point(progress.step, progress.step * per_step, schedule, mean, held_out))
            progress.losses.clear()
            shown = "" if held_out is None else f", validation {held_out:.4f}"
            tqdm.write(f"step {progress.step}: training loss {mean:.4f}{shown}")
        if saved:
            save(scratch, progress, trained, optimizer, schedule, made_by)
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


def _collect(losses: list[torch.Tensor], progress: Progress, wait: bool) -> None:
    """Move the losses of finished steps into `progress`; the last step's only with `wait`, so that a GPU never idles.

    Raises:
        QuantuneError: if a loss is not finite.
    """
    while len(losses) > (0 if wait else 1):
        step, loss = progress.step - len(losses) + 1, losses.pop(0).item()
        if not math.isfinite(loss):
            raise QuantuneError(f"the loss is {loss} at step {step}; lower 'learning_rate'")
        progress.losses.append(loss)


@torch.no_grad()
def mean_loss(model: torch.nn.Module, data: Data | None, recipe: Finetuning) -> float | None:
    """Return the mean loss of a label, in nats, without dropout; None without data."""
    if data is None:
        return None
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in data.batches(recipe.batch_size):
        labels = int((batch["labels"] != IGNORED).sum())
        total += labels * model(**_placed(batch, model)).loss.item()
        count += labels
    model.train(was_training)
    return total / count


def _placed(batch: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a batch on the model's device, floating-point values in the dtype of its first weights."""
    first = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    return {
        name: value.to(first.device, first.dtype if value.is_floating_point() else value.dtype)
        for name, value in batch.items()
    }


def save(
    scratch: Path, progress: Progress, trained: dict[str, torch.Tensor], optimizer, schedule, made_by: str
) -> None:
    """Save all that the next step depends on, after its SHA-256; the state on disk is always complete.

    Args:
        scratch: where the state is saved.
        progress: steps, curves and losses.
        trained: name -> trained weights.
        optimizer: of `torch.optim`.
        schedule: of the learning rate.
        made_by: recipe, seed and data as text; `restore` takes only a state of the same ones.
    """
    state = {
        "made_by": made_by,
        "progress": vars(progress),
        "trained": {name: value.detach().cpu() for name, value in trained.items()},
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
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


def restore(scratch: Path, trained: dict[str, torch.Tensor], optimizer, schedule, made_by: str = "") -> Progress | None:
    """Restore the last saved state, and return its progress; None if none is saved, or the saved one cannot be used."""
    try:
        state = _read_state(scratch / "state.pt", made_by)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        print(f"the saved state of the training cannot be used ({error}); it begins at step 0")
        return None
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(state["trained"][name])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["random"])
    if state["random_cuda"]:
        torch.cuda.set_rng_state_all(state["random_cuda"])
    return Progress(**state["progress"])


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
    return state


def write_curves(path: Path, curves: list[dict[str, Any]]) -> None:
    """Write the points of the loss curves; a loss that was not computed is left empty."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(curves)


class Order:
    """The endless sequence of training examples. It follows from seed and epoch alone, so a resumed run continues it.
    If examples differ in length, those of a batch have similar lengths.
    """

    def __init__(self, count: int, seed: int, lengths: list[int] | None, batch: int):
        self.count, self.seed, self.lengths, self.batch = count, seed, lengths, batch
        self.epoch, self.order = -1, []

    def example(self, position: int) -> int:
        """Return the number of the example at a position."""
        epoch, place = divmod(position, self.count)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self._drawn(epoch)
        return self.order[place]

    def _drawn(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        if self.lengths is None:
            return order
        pool = GROUPED * self.batch
        pools = [
            sorted(order[first : first + pool], key=self.lengths.__getitem__) for first in range(0, self.count, pool)
        ]
        batches = [pool[first : first + self.batch] for pool in pools for first in range(0, len(pool), self.batch)]
        return [number for place in torch.randperm(len(batches), generator=generator) for number in batches[place]]


def _point(step: int, examples: int, schedule, train_loss: float | None, validation_loss: float | None) -> dict:
    values = (step, examples, schedule.get_last_lr()[0], train_loss, validation_loss)
    return dict(zip(COLUMNS, values, strict=True))
