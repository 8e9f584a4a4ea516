"""Models that come packed (GPTQ, AWQ, compressed-tensors), described for estimates as if they were quantized here."""

from typing import Any

from quantune.models.foreign import dialects
from quantune.quantizations.rtn import RoundToNearest


def dense(config: dict[str, Any]) -> tuple[dict[str, Any], list[RoundToNearest]]:
    """Return the config.json of the model before it was packed, and the recipe whose tensors have the packed sizes.

    There is no recipe for a model at full precision. The config.json stays as it is if its quantization is another one
    (bitsandbytes): its shape then counts as unknown.
    """
    settings = config.get("quantization_config") or {}
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    if dialect := dialects.read(settings):
        grid = {"bits": dialect.bits, "group_size": dialect.group_size, "symmetric": dialect.symmetric}
    elif settings.get("quant_method") == "compressed-tensors":
        groups = list(settings["config_groups"].values())
        weights = next((group for group in groups if group.get("targets") == ["Linear"]), groups[0])["weights"]
        size = weights.get("group_size") if weights.get("strategy") == "group" else None
        grid = {"bits": weights["num_bits"], "group_size": size, "symmetric": weights.get("symmetric", True)}
    else:
        return config, []
    return plain, [RoundToNearest.model_construct(method="rtn", **grid)]
