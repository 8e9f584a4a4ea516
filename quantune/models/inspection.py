"""Inspect a model from outside before it is used: build it without weights, and compare it with the stored tensors.

The model is built on torch's meta device, by the code of transformers that will load it: no weight is read, and tensors
that transformers renames or joins while loading are compared after that. `config_values` has bounded the sizes.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from transformers import CONFIG_MAPPING, GenerationConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING
from transformers.quantizers.auto import AutoQuantizationConfig

from quantune.core.errors import QuantuneError
from quantune.models import act_order, loading, stored
from quantune.models.stored import StoredTensor

PIECE = 4 * 2**20  # bytes of a tensor that are in memory at once
SPEECH_TOKENS = ("<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>")


def inspect(folder: Path, tensors: dict[str, StoredTensor], scratch: Path) -> int:
    """Check that a model can be built, loaded without a missing tensor, read text, and be saved.

    Returns the number of its parameters, also of a model that comes quantized.

    Args:
        folder: config.json, tokenizer and settings of the model; no weights are needed.
        tensors: name -> stored tensor, from `stored.tensors`.
        scratch: a folder for the trial of saving.

    Raises:
        QuantuneError: naming the file, the problem and the remedy.
    """
    for path in sorted({tensor.file for tensor in tensors.values()}):
        with _named(path.name, "safetensors cannot read it"), safe_open(path, "pt"):
            pass
    model = build(folder)
    config = model.config
    with _named("config.json", "transformers cannot save it"):
        config.save_pretrained(scratch / "trial")
    if (folder / stored.GENERATION).exists():
        with _named(stored.GENERATION, "transformers cannot use it"):
            GenerationConfig.from_pretrained(folder, local_files_only=True)
    settings = getattr(config, "quantization_config", None)
    if settings is not None:
        with _named("config.json", "transformers cannot use 'quantization_config'"):
            AutoQuantizationConfig.from_dict(settings)
    if not (settings or {}).get("load_in_4bit"):  # bitsandbytes has no 4-bit weights without data; loading checks them
        state = {name: _empty(name, tensor) for name, tensor in tensors.items()}
        strict = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        place = {"dtype": torch.float32, "trust_remote_code": False, "device_map": {"": "meta"}}
        named = _named("config.json", "transformers cannot fit the weights into the model")
        with named, act_order.accepted(type(model), folder):
            _, info = type(model).from_pretrained(None, config=config, state_dict=state, **place, **strict)
        loading.require_complete(info, config.model_type)
    _inspect_tokenizer(folder, model)
    return model.num_parameters()


def build(folder: Path) -> PreTrainedModel:
    """Return the model of the config.json in a folder on the meta device: no weight is read.

    Raises:
        QuantuneError: if transformers cannot build it, or it is no language model and no speech model.
    """
    content = stored.read_json(folder / stored.CONFIG)
    if "auto_map" in content and content["model_type"] not in CONFIG_MAPPING:
        raise QuantuneError(
            f"config.json: needs code of its own ('auto_map') for 'model_type' {content['model_type']}, which is "
            f"never run; allowed: the architectures of transformers {transformers.__version__}; take a newer "
            "transformers, or another model"
        )
    with _named("config.json", "transformers cannot use it"):
        config = loading.config(folder)
    _require_language_model(config)
    kind = loading.auto_class(folder)._model_mapping[type(config)]
    with _named("config.json", "transformers cannot build the model"), torch.device("meta"):
        return kind._from_config(config, dtype=torch.float32)


def _require_language_model(config) -> None:
    """Raise QuantuneError if transformers has no language model, or no speech model, of this configuration."""
    family = config.model_type
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if family not in loading.SPEECH and (encoder or config.is_encoder_decoder or not loading.is_causal(config)):
        kind = "an encoder-decoder model of text" if config.is_encoder_decoder else "no decoder-only language model"
        raise QuantuneError(
            f"config.json: 'model_type' is {family}, {kind}; allowed: decoder-only language models, and "
            "whisper for speech"
        )
    if not isinstance(getattr(config, "vocab_size", None), int):
        raise QuantuneError(
            f"config.json: has no 'vocab_size' (model_type {family}: a model of several parts?); allowed: text models "
            "whose own config.json states it; give the language model alone"
        )


def _empty(name: str, tensor: StoredTensor) -> torch.Tensor:
    """Return a tensor of the stored shape and dtype without data."""
    if _dtype(tensor) is None:
        raise QuantuneError(f"{tensor.file.name}: '{name}' is stored as {tensor.dtype}; give unquantized weights")
    return torch.empty(tensor.shape, dtype=_dtype(tensor), device="meta")


def _dtype(tensor: StoredTensor) -> torch.dtype | None:
    """Return the dtype of a stored tensor; None for a type that no supported model has."""
    return getattr(torch, (stored.DTYPES | stored.CODES).get(tensor.dtype, ""), None)


def _inspect_tokenizer(folder: Path, model) -> None:
    """Raise QuantuneError if the tokenizer has no tokens, or ids that the model has no embeddings for."""
    speech = loading.is_speech(folder)
    with _named("tokenizer files", "transformers cannot use them"):
        reader = loading.processor(folder) if speech else loading.tokenizer(folder)
        tokenizer = reader.tokenizer if speech else reader
        ids, sample = tokenizer.get_vocab(), tokenizer("The tide rises.")["input_ids"]
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = {token: number for token, number in ids.items() if number >= rows}
    if beyond:
        first = min(beyond, key=beyond.__getitem__)
        raise QuantuneError(
            f"tokenizer files: {len(beyond)} of {len(ids):,} tokens have no embedding, the first is {first!r} with id "
            f"{beyond[first]:,}; allowed: ids up to {rows - 1:,} ('vocab_size' in config.json); take the tokenizer of "
            "this model, or enlarge the embeddings (`resize_token_embeddings`)"
        )
    if not sample:
        raise QuantuneError(
            "tokenizer files: a sentence has 0 tokens; copy the tokenizer's files from the original model"
        )
    if speech:
        _inspect_features(reader.feature_extractor, model.config, [name for name in SPEECH_TOKENS if name not in ids])


def _inspect_features(extractor, config, unknown: list[str]) -> None:
    """Raise QuantuneError if a speech model's features have another shape, or its tokenizer lacks tokens."""
    if unknown:
        raise QuantuneError(f"tokenizer files: hold no token {unknown[0]}; copy the tokenizer's files of this Whisper")
    pairs = (
        ("feature_size", getattr(extractor, "feature_size", None), "num_mel_bins", config.num_mel_bins),
        (
            "nb_max_frames",
            getattr(extractor, "nb_max_frames", None),
            "max_source_positions",
            2 * config.max_source_positions,
        ),
    )
    for key, value, of_model, expected in pairs:
        if value != expected:
            reason = f"'{key}' is {value}; allowed: {expected}, from '{of_model}' in config.json"
            raise QuantuneError(f"preprocessor_config.json: {reason}; copy the file from the original model")


def require_finite(tensors: Iterable[tuple[str, StoredTensor]]) -> None:
    """Raise QuantuneError if a stored floating-point tensor holds NaN or infinity.

    The files are read once, through one small buffer: 0.3 s for each GB on one core, beside the time of the disk.
    """
    buffer = bytearray(PIECE)
    for name, tensor in tensors:
        dtype = _dtype(tensor)
        if dtype and dtype.is_floating_point and not all(map(_is_finite, _pieces(tensor, dtype, buffer))):
            raise QuantuneError(
                f"{tensor.file.name}: '{name}' holds NaN or infinity; allowed: finite weights; {stored.AGAIN}, or give "
                "the original model"
            )


def _pieces(tensor: StoredTensor, dtype: torch.dtype, buffer: bytearray) -> Iterator[torch.Tensor]:
    """Yield the values of a stored tensor, piece by piece; each piece lies in the buffer, which the next one reuses."""
    with tensor.file.open("rb", buffering=0) as opened:
        opened.seek(tensor.begin)
        while left := tensor.end - opened.tell():
            if not (size := opened.readinto(memoryview(buffer)[:left])):
                raise QuantuneError(f"{tensor.file.name}: is cut off; {stored.AGAIN}")
            yield torch.frombuffer(buffer, dtype=dtype, count=size // dtype.itemsize)


def _is_finite(values: torch.Tensor) -> bool:
    """Return whether all values are finite: one NaN makes both extremes NaN (`isfinite` takes ten times as long)."""
    values = values.half() if values.element_size() == 1 else values  # FP8 has no `aminmax`
    return all(bool(extreme.isfinite()) for extreme in torch.aminmax(values))


@contextmanager
def _named(file: str, problem: str) -> Iterator[None]:
    """Turn any error of a library into a QuantuneError of one line that names the file."""
    try:
        yield
    except (QuantuneError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the tokenizers of Rust raise no Exception
        text = " ".join(str(error).split()) or type(error).__name__
        raise QuantuneError(
            f"{file}: {problem}: {text[:300]}; correct the file, or copy it from the original model"
        ) from None
