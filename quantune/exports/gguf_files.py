"""GGUF: one file that llama.cpp, Ollama and LM Studio open, and a Modelfile for Ollama."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from quantune.core.errors import listed
from quantune.exports import Export, Exported

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type` of config.json of the models that are exported."""
ROPES = ("default", "linear", "llama3")
"""Kinds of rotary embedding that are exported."""
MODELFILE = "Modelfile"


class Gguf(Export):
    """The base of the formats in one GGUF file."""

    tags: ClassVar[tuple[str, ...]] = ("gguf", "llama.cpp", "ollama")
    encoding: ClassVar[str]
    """Name of the encoding of matrices, in the package `gguf`; vectors are float32."""
    bits: ClassVar[float] = 16
    file_type: ClassVar[str]
    """Name of the kind of file, in the package `gguf`."""
    block: ClassVar[int] = 1
    """Neighbouring weights of a row that share a scale."""

    def unsuitable(self, exported: Exported) -> str | None:
        """Return why a model cannot be a GGUF file, or None."""
        config, family = exported.config, exported.config.get("model_type")
        if exported.quantization is not None:
            return "it is quantized, and a GGUF file begins with full precision; export its parent before quantization"
        if family not in FAMILIES:
            return f"it is a '{family}' model; GGUF files are made of {listed(FAMILIES)}; export 'safetensors'"
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        differs = {
            f"its rotary embedding is of type '{kind}'": kind not in ROPES,
            "its rotary embedding turns only a part of each head": rope.get("partial_rotary_factor", 1) != 1,
            f"its activation is '{config.get('hidden_act')}'": config.get("hidden_act", "silu") != "silu",
            "it attends to a sliding window": bool(config.get("use_sliding_window")),
            "its attention has biases": family == "qwen3" and bool(config.get("attention_bias")),
        }
        for problem, applies in differs.items():
            if applies:
                return (
                    f"{problem}, which llama.cpp does not compute in a model of type '{family}'; export 'safetensors'"
                )
        widths = [config[key] for key in ("hidden_size", "intermediate_size") if isinstance(config.get(key), int)]
        widths += [config["num_attention_heads"] * config["head_dim"]] if config.get("head_dim") else []
        if bad := [width for width in widths if width % self.block]:
            return f"its rows of {bad[0]} weights are no whole blocks of {self.block}; export 'gguf-f16'"
        return None

    def write(self, checkpoint: Path, folder: Path, name: str) -> dict[str, Any]:
        """Write the file tensor by tensor, read it again to compare each tensor, and write the Modelfile."""
        import gguf

        from quantune.exports.ggml import modelfile, settings, vocabulary
        from quantune.exports.ggml.weights import ARCHITECTURES, Weights, relative_error
        from quantune.models import loading

        config, path = loading.config(checkpoint), folder / self.file_name(name)
        weights = Weights(checkpoint, config, gguf.GGMLQuantizationType[self.encoding])
        writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]])
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType[self.file_type])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        settings.add_shape(writer, config)
        vocabulary.add_vocabulary(writer, checkpoint, config.vocab_size)
        planned = list(weights.planned())
        for item in planned:
            writer.add_tensor_info(item.name, item.shape, "float32", item.bytes, item.encoding)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for item in planned:
            writer.write_tensor_data(weights.encoded(item))
        writer.close()
        error = relative_error(path, weights)
        (folder / MODELFILE).write_text(modelfile.modelfile(path.name, checkpoint), encoding="utf-8")
        print(f"{path.name}: {len(planned)} tensors, {path.stat().st_size:,} bytes, relative error {error:.2e}")
        return {"tensors": len(planned), "relative_weight_error": error}

    def file_name(self, name: str) -> str:
        """Return the name of the file: the variant's, and the encoding as llama.cpp's files name it."""
        return f"{name.replace('+', '-')}-{self.encoding}.gguf"

    def usage(self, name: str, speech: bool) -> str:
        """Return how llama.cpp and Ollama open the file."""
        file, short = self.file_name(name), name.replace("+", "-")
        return (
            f'llama.cpp:\n\n```shell\nllama-cli -m PATH/{file} -p "Once upon a time" -n 50\n```\n\n'
            f"Ollama, in the folder of this file:\n\n"
            f"```shell\nollama create {short} -f {MODELFILE}\nollama run {short}\n```\n"
        )


class Float16(Gguf):
    """16-bit floating point, with the range of float16."""

    encoding: ClassVar[str] = "F16"
    file_type: ClassVar[str] = "MOSTLY_F16"

    format: Literal["gguf-f16"]
    """Matrices in float16."""


class Bfloat16(Gguf):
    """16-bit floating point, with the range of float32: exact for models that are stored so."""

    encoding: ClassVar[str] = "BF16"
    file_type: ClassVar[str] = "MOSTLY_BF16"

    format: Literal["gguf-bf16"]
    """Matrices in bfloat16."""


class Q80(Gguf):
    """Eight bits, one float16 scale for each block of 32 weights."""

    relation: ClassVar[Literal["quantized"]] = "quantized"
    encoding: ClassVar[str] = "Q8_0"
    file_type: ClassVar[str] = "MOSTLY_Q8_0"
    bits: ClassVar[float] = 8.5
    block: ClassVar[int] = 32

    format: Literal["gguf-q8-0"]
    """Matrices in Q8_0: 8.5 bits per weight."""
