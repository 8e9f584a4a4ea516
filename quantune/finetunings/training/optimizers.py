"""AdamW, with its two means in 32 or 8 bits, on the device or paged to main memory when the device is full.

The 8-bit and the paged ones are those of bitsandbytes (Dettmers et al., 2022, arXiv:2110.02861, and 2023,
arXiv:2305.14314).
"""

from collections.abc import Iterable

import torch

from quantune.finetunings import Finetuning


def build(recipe: Finetuning, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the recipe's optimizer of these parameters."""
    parameters = list(parameters)
    options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **options, fused=parameters[0].is_cuda)
    from bitsandbytes import optim

    kinds = {
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw": optim.PagedAdamW32bit,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
    }
    return kinds[recipe.optimizer](parameters, **options)


def page(optimizer: torch.optim.Optimizer) -> None:
    """Page the means of a paged optimizer again after its state was loaded, which puts them on the device."""
    if getattr(optimizer, "is_paged", False):
        for parameter, state in optimizer.state.items():
            for name in state.keys() & {"state1", "state2"}:
                paged = optimizer.get_state_buffer(parameter, dtype=state[name].dtype)
                state[name] = paged.copy_(state[name])
