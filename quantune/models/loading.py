"""Load a checkpoint: a whole model, or a base with an adapter on top. Loading is always offline. The dtype is always
explicit: perplexities are not comparable if loaders choose the dtype.
"""

import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING

from quantune.core import gpu_turns
from quantune.core.errors import QuantuneError, listed
from quantune.core.units import size
from quantune.models import act_order, offloading, stored
from quantune.models.architecture import SPEECH
from quantune.models.layer_names import KEPT_CHANNELS

CONSTANTS = (".masked_bias", ".inv_freq", ".position_ids")
"""Ends of the names of constants that older versions of transformers stored beside the weights."""
FILLED = 0.9
"""Share of a GPU's free memory that weights may take."""
PLACED = 0.7
"""Share of it that they take if they do not fit; the rest is for the layer that computes and for activations."""


def device() -> torch.device:
    """Return the CUDA device of this job, or the CPU without one; the first call waits for a free GPU."""
    gpu_turns.take_wanted()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def is_speech(folder: Path) -> bool:
    """Return whether a checkpoint is a speech model, from its config.json."""
    return json.loads((Path(folder) / "config.json").read_text()).get("model_type") in SPEECH


def auto_class(folder: Path) -> type:
    """Return the class of transformers whose `from_pretrained` loads a checkpoint."""
    return AutoModelForSpeechSeq2Seq if is_speech(folder) else AutoModelForCausalLM


def quantization_method(folder: Path) -> str | None:
    """Return the `quant_method` in the checkpoint's config.json, or None at full precision."""
    config = json.loads((Path(folder) / "config.json").read_text())
    return (config.get("quantization_config") or {}).get("quant_method")


def model(folders: list[Path], dtype: str) -> PreTrainedModel:
    """Load a variant. Packed compressed-tensors layers stay packed (see `packed_linear`, `eight_bit_linear`).

    Args:
        folders: the base and, if the variant is an adapter, the adapter after it.
        dtype: name of the dtype for every weight that is not packed, such as "float32".

    Returns:
        The model in evaluation mode, on `device()`; a `PeftModel` with an adapter.
    """
    loaded = _assembled(folders, device(), getattr(torch, dtype))
    _cast_head(loaded, getattr(torch, dtype))
    return loaded


def fitting(folders: list[Path], dtype: str) -> PreTrainedModel:
    """Load a variant as `model` does; if its weights do not fit on the GPU, its last layers stay in main memory.

    They are copied to the GPU whenever they compute. A warning gives the sizes. For inference only.
    """
    place, kind = device(), getattr(torch, dtype)
    if place.type == "cpu":
        return model(folders, dtype)
    needed, free = sum(offloading.stored_size(folder, kind) for folder in folders), offloading.free_bytes(place)
    if needed <= FILLED * free:
        return model(folders, dtype)
    loaded = _in_main_memory(folders, kind)
    layers = [layer for _, stack in offloading.stacks(loaded) for layer in stack]
    outside = needed - sum(offloading.size(layer, kind) for layer in layers)
    offloading.stream(loaded, place, kind, max(0, int(PLACED * free) - outside))
    away = sum(offloading.is_away(layer) for layer in layers)
    print(
        f"WARNING: the weights take {size(needed)} and the GPU has {size(free)} free, so {away} of {len(layers)} layers"
        " stay in main memory and are copied whenever they compute: slower, with the same results",
        flush=True,
    )
    return loaded


def streamed(folders: list[Path], dtype: str) -> PreTrainedModel:
    """Load a variant as `model` does, but leave its layers in main memory; see `quantune.models.offloading`.

    Main memory maps the files, in the stored dtype: nothing is copied before it is used.
    """
    loaded = _in_main_memory(folders, getattr(torch, dtype))
    return offloading.stream(loaded, device(), getattr(torch, dtype))


def _in_main_memory(folders: list[Path], dtype: torch.dtype) -> PreTrainedModel:
    """Load a variant into main memory, in the stored dtype, for a computation in another dtype."""
    return _assembled(folders, torch.device("cpu"), stored_dtype(folders[0]), dtype)


def _assembled(
    folders: list[Path], place: torch.device, dtype: torch.dtype, computed: torch.dtype | None = None
) -> PreTrainedModel:
    """Load a base and its adapters on a device; with `computed`, what is not saved has the values of this dtype."""
    base, *adapters = map(Path, folders)
    import_libraries(base, bool(adapters))
    loaded = whole(base, place, dtype=dtype)
    if quantization_method(base) == "compressed-tensors":
        from quantune.models.eight_bit_linear import keep_compressed

        keep_compressed(loaded, base)
    keep_cpu_kernels_exact(loaded)
    if computed not in (None, dtype):
        _compute_buffers(loaded, base, computed)
    for adapter in adapters:
        if computed and json.loads((adapter / stored.ADAPTER).read_text()).get("bias", "none") != "none":
            for module in loaded.modules():  # trained biases are float32, and would be rounded to the stored dtype
                if module._parameters.get("bias") is not None:
                    module.bias.data = module.bias.data.float()
        from peft import PeftModel
        from peft.tuners.tuners_utils import BaseTunerLayer

        loaded = PeftModel.from_pretrained(loaded, adapter, local_files_only=True)
        require_complete_adapter(loaded, adapter)
        for layer in [part for part in loaded.modules() if isinstance(part, BaseTunerLayer)]:
            for part in (part for name in layer.adapter_layer_names for part in getattr(layer, name).modules()):
                part.keeps_dtype = True
    return loaded.eval()


def _compute_buffers(loaded: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Give buffers that are not saved, such as Gemma's scale of embeddings, the values that a model has in a dtype."""
    with init_empty_weights():
        fresh = auto_class(folder)._model_mapping[type(config(folder))]._from_config(config(folder), dtype=dtype)
    for name, module in fresh.named_modules():
        for buffer in module._non_persistent_buffers_set:
            known, value = loaded.get_submodule(name)._buffers, module._buffers[buffer]
            if value is not None and known[buffer].dtype != value.dtype:
                known[buffer] = value


def whole(folder: Path, place: torch.device, **options) -> PreTrainedModel:
    """Load the whole model in a folder on a device; `options` are those of transformers' `from_pretrained`.

    Raises:
        QuantuneError: if a tensor is missing, unexpected or of another shape. transformers would draw it at random.
    """
    kind = auto_class(folder)._model_mapping[type(shape := config(folder))]
    options |= {"config": shape, "device_map": {"": place}, "local_files_only": True, "trust_remote_code": False}
    with act_order.accepted(kind, folder):
        loaded, info = kind.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    require_complete(info, loaded.config.model_type, f"'{folder}': ")
    return loaded


def require_complete(info: dict, family: str, where: str = "") -> None:
    """Raise QuantuneError if tensors are missing, unexpected or of another shape, with the first name of each kind.

    Args:
        info: what transformers reports after loading; without tied tensors, and those that the architecture ignores.
        family: the `model_type` of the model.
        where: the beginning of the error.
    """
    shapes = {name: f" {list(saved)} instead of {list(expected)}" for name, saved, expected in info["mismatched_keys"]}
    unexpected = [name for name in info["unexpected_keys"] if not name.endswith((*CONSTANTS, *KEPT_CHANNELS))]
    groups = {"are missing": info["missing_keys"], "are unexpected": unexpected, "have another shape": shapes}
    problems = [
        f"{len(names)} {what} (first '{(first := min(names))}'{shapes[first] if names is shapes else ''})"
        for what, names in groups.items()
        if names
    ]
    if problems or info["error_msgs"]:
        raise QuantuneError(
            f"{where}the weights are not those of the model in config.json (model_type {family}); of its tensors "
            f"{listed([*problems, *info['error_msgs']])}; take config.json and *.safetensors from the same model"
        )


def require_complete_adapter(model, folder: Path) -> None:
    """Raise QuantuneError if the adapter in a folder has other tensors than the adapter of the loaded `PeftModel`."""
    from peft import get_peft_model_state_dict

    expected, saved = set(get_peft_model_state_dict(model)), set(stored.header(Path(folder) / stored.ADAPTER_WEIGHTS))
    if different := sorted(expected ^ saved):
        what = "misses" if different[0] in expected else "has an unexpected tensor"
        raise QuantuneError(f"'{folder}': the adapter {what} '{different[0]}'; delete the folder, and it is made again")


def is_causal(config: PretrainedConfig) -> bool:
    """Return whether transformers has a language model of a configuration."""
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING


class LoadedVariant:
    """A variant on disk. Its model is loaded on first use, and loaded again for another dtype."""

    def __init__(self, folders: list[Path]):
        """Take the base and, if the variant is an adapter, the adapter after it."""
        self.folders = list(map(Path, folders))
        self._loaded: tuple[str, PreTrainedModel] | None = None

    @property
    def base(self) -> Path:
        """The folder of the whole model, with tokenizer or processor."""
        return self.folders[0]

    def model(self, dtype: str) -> PreTrainedModel:
        """Return the model in evaluation mode; see `model`. Only one dtype is held at a time."""
        if self._loaded is None or self._loaded[0] != dtype:
            self._loaded = None
            self._loaded = dtype, fitting(self.folders, dtype)
        return self._loaded[1]


def import_libraries(base: Path, adapted: bool) -> None:
    """Import the libraries that load a checkpoint; they take seconds, so this is done before the GPU is taken."""
    mapping = MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING if is_speech(base) else MODEL_FOR_CAUSAL_LM_MAPPING
    mapping.get(type(config(base)), None)
    if adapted:
        import peft  # noqa: F401

        from quantune.models import bottleneck, unipelt  # noqa: F401 (PEFT then knows the methods)
    method = quantization_method(base)
    if method == "compressed-tensors":
        import compressed_tensors  # noqa: F401
    elif method == "bitsandbytes":
        import bitsandbytes  # noqa: F401


def _cast_head(loaded: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast the output embedding to the requested dtype.

    transformers 5.17 leaves a weight that it renames (GPT-NeoX's `embed_out`) in the stored dtype when it loads a
    quantized checkpoint.
    """
    head = loaded.get_output_embeddings()
    if head is not None and head.weight.is_floating_point():
        head.weight.data = head.weight.data.to(dtype)


def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint folder; raises QuantuneError if it has no tokens."""
    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    _require_tokens(loaded, folder)
    return loaded


def feature_extractor(folder: Path):
    """Load the feature extractor of a speech model's checkpoint folder."""
    return AutoFeatureExtractor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def processor(folder: Path):
    """Load the feature extractor and the tokenizer of a speech model; raises QuantuneError if it has no tokens."""
    loaded = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    _require_tokens(loaded.tokenizer, folder)
    return loaded


def _require_tokens(loaded: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raise QuantuneError if a tokenizer is empty: transformers makes one if its files are missing."""
    if not loaded.vocab_size:
        files = listed(stored.VOCABULARIES)
        raise QuantuneError(f"'{folder}': has no tokenizer; allowed: one of {files}; copy it from the original model")


def config(folder: Path) -> PretrainedConfig:
    """Load the configuration of a checkpoint folder, as transformers can use it (see `act_order`)."""
    return act_order.plain(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the stored dtype of the checkpoint's floating-point weights (float32 if config.json names none)."""
    return config(folder).dtype or torch.float32


def keep_cpu_kernels_exact(loaded: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit layers for its bfloat16 CPU kernel.

    On processors with AVX-512 BF16 the first evaluation would turn the block scales and the arithmetic into bfloat16,
    despite the requested dtype (bitsandbytes 0.50, `Linear4bit.forward`). Results would depend on the processor.
    """
    for module in loaded.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
