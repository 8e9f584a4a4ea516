"""What a method changes in the training loop: learning rates of single parameters."""

import torch

from quantune.finetunings import Finetuning


def with_rates(
    optimizer: torch.optim.Optimizer, recipe: Finetuning, trained: dict[str, torch.Tensor]
) -> torch.optim.Optimizer:
    """Return the optimizer with a group of parameters for each learning rate of the recipe, that of factor 1 first."""
    by_rate: dict[float, list[torch.Tensor]] = {1.0: []}
    for name, value in trained.items():
        by_rate.setdefault(recipe.rate(name), []).append(value)
    if len(by_rate) > 1:
        (group,) = optimizer.param_groups
        options = {key: value for key, value in group.items() if key != "params"}
        group["params"] = by_rate.pop(1.0)
        for rate, values in by_rate.items():
            optimizer.add_param_group({**options, "params": values, "lr": rate * group["lr"]})
    return optimizer
