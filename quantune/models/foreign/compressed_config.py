"""The configuration of a checkpoint of compressed-tensors from outside: what this package computes of it."""

from typing import Any

BITS = (2, 3, 4, 5, 6, 8)
EIGHT_BITS = {"int-quantized": "int", "float-quantized": "float"}
"""Format of compressed-tensors -> type of its 8-bit codes."""
ALLOWED = (
    "format pack-quantized with whole numbers of 2, 3, 4, 5, 6 or 8 bits, weights only; or int-quantized or "
    "float-quantized with 8 bits and one scale for each output"
)


def problem(settings: dict[str, Any]) -> str | None:
    """Return what `packed_linear` and `eight_bit_linear` do not compute of a `quantization_config`, or None."""
    groups, form = settings.get("config_groups"), settings.get("format")
    known = form == "pack-quantized" or (isinstance(form, str) and form in EIGHT_BITS)
    if not known or not isinstance(groups, dict) or not groups:
        return f"has format {form!r:.60}" if form is not None else "has no format"
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            return f"has weights of another kind in '{name}'"
        if group.get("format") not in (None, form):
            return f"has another format in '{name}'"
        if group.get("output_activations"):
            return f"quantizes outputs of layers in '{name}'"
        reason = _eight_bits(weights, group, EIGHT_BITS[form]) if form in EIGHT_BITS else _packed(weights, group)
        if reason:
            return f"{reason} in '{name}'"
    extra = ("kv_cache_scheme", "transform_config")
    return next((f"has '{key}'" for key in extra if settings.get(key)), None)


def _packed(weights: dict[str, Any], group: dict[str, Any]) -> str | None:
    if weights.get("num_bits") not in BITS or weights.get("type") != "int":
        return "has weights of another kind"
    if group.get("input_activations"):
        return "quantizes activations"
    if weights.get("strategy") not in ("group", "channel") or weights.get("actorder") == "dynamic":
        return "has another order or strategy of groups"
    return None


def _eight_bits(weights: dict[str, Any], group: dict[str, Any], kind: str) -> str | None:
    inputs = group.get("input_activations")
    for part in [weights, *([inputs] if inputs else ())]:
        if not isinstance(part, dict) or part.get("num_bits") != 8 or part.get("type") != kind:
            return "has codes of another kind"
        if part.get("symmetric") is not True:
            return "has codes with zero points"
    if weights.get("strategy") != "channel":
        return "has another strategy of scales"
    if inputs and (inputs.get("strategy"), bool(inputs.get("dynamic"))) not in (("token", True), ("tensor", False)):
        return "rounds activations in another way"
    return None
