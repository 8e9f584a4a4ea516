"""Packed layers whose groups are not consecutive inputs (`actorder: group`), as GPTQ with `desc_act` makes them.

`weight_g_idx` holds the group of each input. compressed-tensors 0.19 no longer has this expression, which its older
versions and vLLM read: its configuration would be refused. So transformers loads such a checkpoint as if it had none,
and the layers get their groups afterwards. Without this package transformers refuses the checkpoint; it never
computes with wrong groups.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from quantune.core.errors import QuantuneError
from quantune.models import stored, tensor_files

ORDERED = ("group", True)
"""Values of `actorder` of compressed-tensors that stand for groups out of order."""
GROUPS = "weight_g_idx"


def plain(config: Any) -> Any:
    """Return a configuration of transformers whose quantization_config has no order of groups; changed in place."""
    for weights in _ordered(getattr(config, "quantization_config", None)):
        weights["actorder"] = None
    return config


@contextmanager
def accepted(kind: type, folder: Path) -> Iterator[None]:
    """Let a class of transformers load a checkpoint whose groups are out of order: they are not unexpected tensors."""
    known = kind._keys_to_ignore_on_load_unexpected
    if _ordered(stored.read_json(folder / stored.CONFIG).get("quantization_config")):
        kind._keys_to_ignore_on_load_unexpected = [*(known or ()), rf"\.{GROUPS}$"]
    try:
        yield
    finally:
        kind._keys_to_ignore_on_load_unexpected = known


def _ordered(settings: Any) -> list[dict[str, Any]]:
    """Return the settings of the weights of those layers whose groups are out of order."""
    groups = settings.get("config_groups") if isinstance(settings, dict) else None
    schemes = (
        [group.get("weights") for group in groups.values() if isinstance(group, dict)]
        if isinstance(groups, dict)
        else []
    )
    return [weights for weights in schemes if isinstance(weights, dict) and weights.get("actorder") in ORDERED]


def attach(model: torch.nn.Module, folder: Path) -> None:
    """Give the packed layers of a model that is not assembled yet (`packed_linear`) their groups from the files.

    Raises:
        QuantuneError: if no layer has any, or they do not fit a layer.
    """
    if not _ordered(stored.read_json(folder / stored.CONFIG).get("quantization_config")):
        return
    tensors, prefix, count = stored.tensors(Path(folder).iterdir()), f"{model.base_model_prefix}.", 0
    for name, module in model.named_modules():
        if not hasattr(module, "weight_packed"):
            continue
        keys = [f"{key}.{GROUPS}" for key in (name, name.removeprefix(prefix)) if f"{key}.{GROUPS}" in tensors]
        if keys:
            groups, known = tensor_files.values(tensors[keys[0]]), module.weight_scale.shape[1]
            if groups.shape != (module.in_features,) or groups.min() < 0 or groups.max() >= known:
                raise QuantuneError(
                    f"'{folder}': '{keys[0]}' does not fit the layer; allowed: a group from 0 to {known - 1} for each "
                    f"of {module.in_features} inputs; download the file again"
                )
            module.register_buffer(GROUPS, groups.to(module.weight_packed.device))
            count += 1
    if not count:
        raise QuantuneError(
            f"'{folder}': 'actorder' in config.json is group, and no layer has a '{GROUPS}'; take config.json and "
            "*.safetensors from the same model"
        )
