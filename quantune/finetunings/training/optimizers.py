"""The optimizers and the schedule of their learning rate: AdamW, with its two means in 32 or 8 bits, on the device or
paged to main memory when the device is full, and Adafactor.

The 8-bit and the paged ones are those of bitsandbytes (Dettmers et al., 2022, arXiv:2110.02861, and 2023,
arXiv:2305.14314); Adafactor (Shazeer and Stern, 2018, arXiv:1804.04235) is that of transformers.
"""

import torch
from transformers import get_scheduler

from quantune.finetunings import Finetuning


def build(recipe: Finetuning, trained: dict[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the recipe's optimizer of these parameters: a group for each learning rate, the one of factor 1 first."""
    by_rate: dict[float, list[torch.nn.Parameter]] = {1.0: []}
    for name, value in trained.items():
        by_rate.setdefault(recipe.rate(name), []).append(value)
    rate, decay = recipe.learning_rate, recipe.weight_decay
    groups = [{"params": values, "lr": factor * rate, "weight_decay": decay} for factor, values in by_rate.items()]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=next(iter(trained.values())).is_cuda)
    if recipe.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(groups, scale_parameter=False, relative_step=False)
    from bitsandbytes import optim

    kinds = {
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw": optim.PagedAdamW32bit,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
    }
    return kinds[recipe.optimizer](groups)


def schedule(recipe: Finetuning, optimizer: torch.optim.Optimizer, steps: int):
    """Return the schedule of the learning rate over a number of steps."""
    shape, keys = {"constant": "constant_with_warmup"}.get(recipe.schedule, recipe.schedule), None
    if recipe.learning_rate_floor:
        shape, keys = "cosine_with_min_lr", {"min_lr_rate": recipe.learning_rate_floor}
    return get_scheduler(shape, optimizer, recipe.warmup(steps), steps, scheduler_specific_kwargs=keys)


def page(optimizer: torch.optim.Optimizer) -> None:
    """Page the means of a paged optimizer again after its state was loaded, which puts them on the device."""
    if getattr(optimizer, "is_paged", False):
        for parameter, state in optimizer.state.items():
            for name in state.keys() & {"state1", "state2"}:
                paged = optimizer.get_state_buffer(parameter, dtype=state[name].dtype)
                state[name] = paged.copy_(state[name])
