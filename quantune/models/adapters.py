"""Adapters: how to save them with reproducible bytes, count their parameters, and add methods to PEFT."""

import json
import tempfile
from pathlib import Path

from tqdm import tqdm

from quantune.models.stored import ADAPTER, ADAPTER_WEIGHTS

INITIAL = "initial_adapter"
"""Attribute of a `PeftModel`: the tensors that its adapter began with, taken out of the base's weights."""


def task(model) -> str | None:
    """Return PEFT's name for the task of a model; None for a speech model, because PEFT has no task for audio."""
    return None if model.config.is_encoder_decoder else "CAUSAL_LM"


def register(name: str, config: type, tuner: type) -> None:
    """Make a method known to PEFT, whose enumeration of methods is closed; its configuration reads `peft_type`."""
    from peft import PeftType
    from peft.utils import register_peft_method

    key = name.upper()
    member = str.__new__(PeftType, key)
    member._name_ = member._value_ = key
    type.__setattr__(PeftType, key, member)
    PeftType._member_map_[key] = PeftType._value2member_map_[key] = member
    PeftType._member_names_.append(key)
    register_peft_method(name=name, config_cls=config, model_cls=tuner)


def keep_initial(model) -> None:
    """Keep a copy of the adapter's tensors of now: they were taken out of the base's weights."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model)
    setattr(model, INITIAL, {name: value.detach().to("cpu", copy=True) for name, value in state.items()})


def save_adapter(model, folder: Path) -> None:
    """Save the adapter of a `PeftModel`; the same adapter gives the same bytes.

    PEFT writes the target modules in the order of a Python set, which varies between processes, so they are sorted.
    PEFT's empty model card is deleted: `provenance.json` says more.

    An adapter that began as a part of the weights (PiSSA) is saved as its change since then, of twice the rank, so that
    it opens on the unchanged base.
    """
    if (initial := getattr(model, INITIAL, None)) is None:
        model.save_pretrained(folder)
    else:
        from safetensors.torch import save_file

        with tempfile.TemporaryDirectory() as place:
            (begin := Path(place) / "pissa_init").mkdir()
            save_file(initial, begin / ADAPTER_WEIGHTS)
            model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(begin))
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / ADAPTER
    config = json.loads(path.read_text())
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def merged(model, device, dtype):
    """Return the whole model with the adapter of a `PeftModel` added to its weights, in main memory.

    The weights are added in float32 on the device, one layer at a time, and then have the dtype.

    If the output embedding shares its weights with the token embeddings and one of them has an adapter, the two are
    separated first: an update of one would change the other, and the function of the model.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    from quantune.models import offloading

    whole = model.get_base_model()
    head, embeddings = whole.get_output_embeddings(), whole.get_input_embeddings()
    adapted = any(hasattr(layer, "base_layer") for layer in (head, embeddings))
    head, embeddings = (getattr(layer, "base_layer", layer) for layer in (head, embeddings))
    separate = adapted and head is not None and head.weight is embeddings.weight
    if separate:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for layer in tqdm([part for part in model.modules() if isinstance(part, BaseTunerLayer)], "merging", unit="layer"):
        offloading.move(layer.modules(), device, torch.float32)
        layer.merge()
        offloading.move(layer.modules(), "cpu", dtype)
    whole = model.unload()
    offloading.move(whole.modules(), "cpu", dtype)
    if separate:
        whole.config.tie_word_embeddings = False
        print("the output embedding is stored apart from the token embeddings, because one of them has an adapter")
    return whole


def parameters(model) -> tuple[int, int]:
    """Return the numbers of trained and of all parameters of a model, whatever they are packed into."""
    from quantune.models.packed_linear import dense_parameters

    if hasattr(model, "get_nb_trainable_parameters"):  # a `PeftModel`, which knows of 4-bit weights
        trained, total = model.get_nb_trainable_parameters()
    else:
        sizes = [(value.numel(), value.requires_grad) for value in model.parameters()]
        trained, total = sum(size for size, grows in sizes if grows), sum(size for size, _ in sizes)
    return trained, total + dense_parameters(model)


def virtual_tokens(model) -> int:
    """Return the number of virtual tokens that a `PeftModel` puts before every text; 0 for other models."""
    return getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", None) or 0
