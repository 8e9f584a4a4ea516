"""The first step of LoftQ (Li et al., 2023, arXiv:2310.08659): an adapter begins with the error of a quantization.

PEFT's `replace_lora_weights_loftq` does the same for 4-bit layers of bitsandbytes; here for any quantization.
"""

from pathlib import Path

import torch

from quantune.core.errors import QuantuneError
from quantune.models.checkpoints import Tensors


@torch.no_grad()
def initialize(model, original: Path) -> None:
    """Set the matrices of each adapted layer so that scaling x B x A is the best approximation of W - Q of their rank.

    Args:
        model: a `PeftModel` with LoRA on a quantized base, whose dense weights are Q.
        original: the checkpoint with the weights W before quantization.

    Raises:
        QuantuneError: if the original has no weights of an adapted layer.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    tensors = Tensors(original)
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if f"{name}.weight" not in tensors:
            raise QuantuneError(f"'{original}' has no '{name}.weight'; take 'initialization: default' for this model")
        a, b, rank = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.r["default"]
        dense = dequantize_module_weight(layer.get_base_layer()).float()
        error = tensors[f"{name}.weight"].to(dense.device).float() - dense
        left, values, right = torch.linalg.svd(error, full_matrices=False)
        roots = values[:rank].sqrt()
        a.copy_(roots[:, None] * right[:rank])
        b.copy_(left[:, :rank] * roots / layer.scaling["default"])
