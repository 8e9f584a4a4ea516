"""Exports in Hugging Face layout: the checkpoint as it is, which transformers and vLLM open."""

import shutil
from pathlib import Path
from typing import Any, ClassVar, Literal

from quantune.core.errors import QuantuneError
from quantune.core.workload import Inference
from quantune.exports import Export, Exported
from quantune.models.stored import CONFIG, GENERATION, INDEX, TOKENIZER_FILES

CLOSE = 5e-3
"""Relative distance of the weights of a layer up to which two loaders read the same: a rounding to 16 bits."""


class Safetensors(Export):
    """A plain Hugging Face folder."""

    library: ClassVar[str] = "transformers"

    format: Literal["safetensors"]
    """config.json, tokenizer and safetensors files, as the checkpoint has them."""

    def unsuitable(self, exported: Exported) -> str | None:
        """Return why transformers would read another model, or None."""
        return exported.only_here

    def write(self, checkpoint: Path, folder: Path, name: str) -> dict[str, Any]:
        """Copy the files of the model, and no others: no kept checkpoints of a training, no curves."""
        files = [checkpoint / file for file in (CONFIG, GENERATION, INDEX, *TOKENIZER_FILES)]
        files = [path for path in files if path.is_file()] + sorted(checkpoint.glob("*.safetensors"))
        for path in files:
            shutil.copyfile(path, folder / path.name)
        return {"files": len(files)}

    def usage(self, name: str, speech: bool) -> str:
        """Return how transformers opens the folder."""
        if speech:
            return (
                "```python\nfrom transformers import pipeline\n\n"
                'transcribe = pipeline("automatic-speech-recognition", model="PATH")\n'
                'print(transcribe("recording.wav")["text"])\n```\n'
            )
        return (
            "```python\nfrom transformers import pipeline\n\n"
            'generate = pipeline("text-generation", model="PATH")\n'
            'print(generate("Once upon a time", max_new_tokens=50)[0]["generated_text"])\n```\n'
        )


class CompressedTensors(Safetensors):
    """A Hugging Face folder with packed weights that vLLM serves."""

    tags: ClassVar[tuple[str, ...]] = ("compressed-tensors", "vllm")

    format: Literal["compressed-tensors"]
    """Packed weights in the format of compressed-tensors, checked with that library's own loader."""

    def unsuitable(self, exported: Exported) -> str | None:
        """Return why vLLM cannot serve the layers, or None."""
        if exported.quantization is None:
            return "it is not quantized; export 'safetensors', which vLLM serves too"
        return exported.unservable

    def write(self, checkpoint: Path, folder: Path, name: str) -> dict[str, Any]:
        """Copy the files; compare the weights that compressed-tensors' loader reads with those of the checkpoint.

        Raises:
            QuantuneError: if the weights of a layer differ by more than rounding, or the model computes no numbers.
        """
        import torch

        from quantune.models import loading, probes

        facts, dtype = super().write(checkpoint, folder, name), loading.stored_dtype(checkpoint)
        opened = loading.whole(folder, loading.device(), dtype=dtype).eval()
        if not probes.probe_logits(opened).isfinite().all():  # the first pass unpacks the weights
            raise QuantuneError(f"'{name}' computes no finite logits in {dtype} with compressed-tensors' loader")
        packed, worst = loading.streamed([checkpoint], str(dtype).removeprefix("torch.")), 0.0
        for layer, module in packed.named_modules():
            if isinstance(module, torch.nn.Linear):
                pair = opened.get_submodule(layer).weight, module.weight
                read, expected = (weight.detach().float().cpu() for weight in pair)
                distance = probes.relative_distance(read, expected)
                if not distance <= CLOSE:
                    raise QuantuneError(
                        f"compressed-tensors reads other weights of '{layer}' than quantune (by {distance:.1e}); "
                        "export 'safetensors', and report this with the versions in provenance.json"
                    )
                worst = max(worst, distance)
        print(f"compressed-tensors' loader reads the same weights: they differ by {worst:.1e} at most")
        return facts | {"relative_weight_distance": worst}

    def usage(self, name: str, speech: bool) -> str:
        """Return how vLLM serves the folder, and how transformers opens it."""
        served = f"```shell\nvllm serve PATH --served-model-name {name.replace('+', '-')}\n```\n"
        if speech:
            return super().usage(name, speech)
        return (
            f"vLLM:\n\n{served}\ntransformers, with the package `compressed-tensors`:\n\n{super().usage(name, speech)}"
        )

    def workload(self, dtype: str) -> Inference | None:
        """Return the forward pass of the check, whose weights are dense."""
        return Inference(dtype=dtype, batch=2, length=64)
