"""The training loop, the same for every method and track: it trains the parameters that require gradients.

The gradient of a step is that of the mean loss over all its labels, into however many batches they are divided. The
loop saves all that the next step depends on (weights, optimizer, schedule, random state, curves) every `save_every`
steps, atomically, and resumes from that state. A killed job loses at most the steps since then, and ends with the same
bits as an uninterrupted one. The data order follows from seed and epoch alone.
"""

import csv
import itertools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from quantune.core.errors import QuantuneError
from quantune.data.batches import IGNORED, Data, in_batches
from quantune.finetunings import Finetuning, validation_column
from quantune.finetunings.training import checkpointing, optimizers, precision
from quantune.finetunings.training.kept import Checkpoints
from quantune.finetunings.training.state import Progress, copied, restore, save, take

GROUPED = 16  # batches whose examples are sorted by length together: little padding, but a random order


def train(
    model: torch.nn.Module,
    recipe: Finetuning,
    seed: int,
    data: Data,
    validation: Data | None,
    folder: Path,
    scratch: Path,
    store: Callable[[Path], None] | None = None,
    others: Mapping[str, Data] | None = None,
) -> dict[str, Any]:
    """Train the model in place; write `curves.csv`, and checkpoints if the recipe keeps them.

    Args:
        model: only its parameters that require gradients are trained.
        recipe: steps, batches, optimizer and curves.
        seed: of data order and dropout.
        data: the training examples.
        validation: the examples of the validation loss; None: no validation loss.
        folder: where `curves.csv` is written.
        scratch: where the state is saved; if it holds one, training resumes from it.
        store: saves the trained weights into a folder; needed if the recipe keeps checkpoints.
        others: dataset -> examples of one more validation loss.

    Returns:
        Steps, epochs and losses, in float16 the skipped steps; under "run" the numbers that vary from run to run.

    Raises:
        QuantuneError: if the loss is no longer finite.
    """
    held_out = {"validation_loss": validation}
    held_out |= {validation_column(name): examples for name, examples in (others or {}).items()}
    precision.prepare(model, recipe)
    if recipe.compile:
        precision.compile_layers(model)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    per_step = recipe.batch_size * recipe.gradient_accumulation
    steps = recipe.total_steps(len(data))
    order = Order(len(data), seed, data.lengths() if recipe.group_by_length else None, recipe.batch_size)
    optimizer = optimizers.build(recipe, trained)
    schedule = optimizers.schedule(recipe, optimizer, steps)
    scaler = precision.scaler(model, recipe)
    hook = recipe.hook(model, steps)
    parts = {"optimizer": optimizer, "schedule": schedule, "scaler": scaler, **({"hook": hook} if hook else {})}
    made_by = f"{recipe.identity()}, seed {seed}, {steps} steps, {len(data)} examples"
    progress = restore(scratch, trained, parts, made_by) or Progress()
    resumed, started, checkpoints = progress.step, time.time(), Checkpoints(scratch, recipe.keep_checkpoints)
    if resumed:
        print(f"resuming from step {resumed} of {steps}")
    else:
        checkpoints.clear()
        progress.curves.append(_point(0, 0, schedule, None, _losses(model, held_out, recipe)))
        torch.manual_seed(seed)
    model.train()
    bar = tqdm(total=steps, initial=resumed, desc="training", unit="step")
    losses: list[torch.Tensor] = []  # of steps whose losses are not in `progress` yet
    while progress.step < steps and not _stale(recipe, progress):
        loss = torch.zeros((), device=model.device)
        examples = [order.example(progress.step * per_step + place) for place in range(per_step)]
        labels = data.labels(examples)
        for first in range(0, per_step, recipe.batch_size):
            chosen = examples[first : first + recipe.batch_size]
            share = labels / data.labels(chosen)  # so that each label of the step weighs the same
            value = _loss(model, data.batch(chosen), recipe)
            scaler.scale(value / share).backward()
            loss += value.detach() / share
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained.values(), recipe.max_gradient_norm)
        if precision.step(scaler, optimizer):
            schedule.step()
            if hook:
                hook.step(progress.step)
        else:
            progress.skipped += 1
        optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        losses.append(loss)
        last = progress.step == steps
        measured = last or _due(recipe.evaluate_every, progress.step, per_step, len(data))
        logged = measured or (recipe.log_every and progress.step % recipe.log_every == 0)
        saved = not last and progress.step % recipe.save_every == 0
        _collect(losses, progress, wait=logged or saved)
        bar.update()
        if progress.losses:
            bar.set_postfix(loss=f"{progress.losses[-1]:.3f}", refresh=False)
        if logged:
            validated = _losses(model, held_out, recipe) if measured else dict.fromkeys(held_out)
            mean = sum(progress.losses) / len(progress.losses)
            progress.curves.append(_point(progress.step, progress.step * per_step, schedule, mean, validated))
            progress.losses.clear()
            known = {name: value for name, value in validated.items() if value is not None}
            shown = "".join(f", {_words(name)} {value:.4f}" for name, value in known.items())
            shown += f", {progress.skipped} steps skipped so far" if progress.skipped else ""
            tqdm.write(f"step {progress.step}: training loss {mean:.4f}{shown}")
            deciding = recipe.deciding_loss
            if recipe.keep == "best" and measured and validated[deciding] < progress.best.get(deciding, math.inf):
                progress.best = {"step": progress.step, deciding: validated[deciding], "trained": copied(trained)}
            if recipe.keep_checkpoints and measured and not last:
                checkpoints.add(progress.step, store)
        if saved:
            save(scratch, progress, trained, parts, made_by)
    bar.close()
    if progress.step < steps:
        print(f"training ends after step {progress.step}: the {_words(recipe.deciding_loss)} loss fell no more")
    facts, steps = {"stopped_early": True} if progress.step < steps else {}, progress.step
    seconds = max(time.time() - started, 1e-9)
    write_curves(folder / "curves.csv", progress.curves)
    facts |= {"checkpoints": checkpoints.link(folder)} if recipe.keep_checkpoints else {}
    if progress.best:
        take(trained, progress.best.pop("trained"))
        lowest = _words(recipe.deciding_loss)
        print(f"the weights of step {progress.best['step']} are kept: their {lowest} loss is the lowest")
        facts["best"] = progress.best
    kept = next(point for point in progress.curves if point["step"] == progress.best.get("step", steps))
    if recipe.precision == "float16":
        print(f"{progress.skipped} of {steps} steps were skipped: a gradient was not finite in float16")
        facts |= {"skipped_steps": progress.skipped, "loss_scale": scaler.get_scale()}
    spans = itertools.pairwise(progress.curves)
    return facts | {
        "steps": steps,
        "epochs": round(steps * per_step / len(data), 4),
        "examples": steps * per_step,
        "mean_train_loss": sum((end["step"] - begin["step"]) * end["train_loss"] for begin, end in spans) / steps,
        "train_loss": kept["train_loss"],
        **{name: kept[name] for name in held_out},
        "run": {"steps_per_second": round((steps - resumed) / seconds, 3), "resumed_from_step": resumed},
    }


def _stale(recipe: Finetuning, progress: Progress) -> bool:
    """Return whether the last `patience` points had no lower validation loss than the best one."""
    if recipe.patience is None or not progress.best:
        return False
    later = [point for point in progress.curves if point["step"] > progress.best["step"]]
    return sum(point[recipe.deciding_loss] is not None for point in later) >= recipe.patience


def _due(every: int | str, step: int, per_step: int, examples: int) -> bool:
    """Return whether a point is due after a step: at each multiple of `every`, or at the end of each epoch."""
    if every == "epoch":
        return step * per_step // examples > (step - 1) * per_step // examples
    return step % every == 0


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


def _words(column: str) -> str:
    """Return a validation loss in words: `validation`, or `validation (news)` for the column of another dataset."""
    dataset = column.removesuffix(validation_column(""))
    return "validation" if dataset == column else f"validation ({dataset})"


def _losses(model: torch.nn.Module, held_out: Mapping[str, Data | None], recipe: Finetuning) -> dict[str, float | None]:
    """Return column -> validation loss."""
    return {name: mean_loss(model, data, recipe) for name, data in held_out.items()}


@torch.no_grad()
def mean_loss(model: torch.nn.Module, data: Data | None, recipe: Finetuning) -> float | None:
    """Return the mean loss of a label, in nats, without dropout; None without data.

    Raises:
        QuantuneError: if it is not finite.
    """
    if data is None:
        return None
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in in_batches(data, recipe.batch_size, recipe.max_validation):
        labels = int((batch["labels"] != IGNORED).sum())
        total += labels * _loss(model, batch, recipe).item()
        count += labels
    model.train(was_training)
    if not math.isfinite(total):
        raise QuantuneError(f"the validation loss is {total / count}; lower 'learning_rate', or change 'precision'")
    return total / count


def _loss(model: torch.nn.Module, batch: dict[str, torch.Tensor], recipe: Finetuning) -> torch.Tensor:
    """Return the mean loss of the labels of a batch, in nats: a scalar."""
    with precision.computing(model, recipe), checkpointing.saving(model, recipe):
        return model(**_placed(batch, model)).loss


def _placed(batch: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a batch on the model's device, floating-point values in the dtype of its first weights."""
    first = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    if first.is_cuda:  # a copy from pinned memory does not wait for the step before
        batch = {name: value.pin_memory() for name, value in batch.items()}
    return {
        name: value.to(first.device, first.dtype if value.is_floating_point() else value.dtype, non_blocking=True)
        for name, value in batch.items()
    }


def write_curves(path: Path, curves: list[dict[str, Any]]) -> None:
    """Write the points of the loss curves; a loss that was not computed is left empty."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, curves[0], lineterminator="\n")
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


def _point(step: int, examples: int, schedule, train_loss: float | None, validated: dict[str, float | None]) -> dict:
    """Return a row of `curves.csv`."""
    values = {"step": step, "examples": examples, "learning_rate": schedule.get_last_lr()[0]}
    return values | {"train_loss": train_loss} | validated
