"""Transcripts of a split: every hypothesis beside its reference, with the edits between the raw texts.

Clips that fit into the model's window are transcribed in batches, greedily or with beams. Transcripts are normalized
when the report is written (`metrics/normalizers.py`), so another normalizer needs no new transcription.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from quantune.core.recipe import LARGEST_BATCH, LONGEST, MANY, Dtype
from quantune.core.workload import Inference
from quantune.evaluations import Evaluation
from quantune.evaluations.metrics import names, normalizers
from quantune.sources.entries import UNSPACED, Language

if TYPE_CHECKING:
    from quantune.evaluations.metrics.metric import Measurement


class Transcription(Evaluation):
    """How well a variant transcribes speech."""

    track: ClassVar[Literal["text", "speech"]] = "speech"
    settings: ClassVar[frozenset[str]] = frozenset({"general", "normalizer"})
    numbers: ClassVar[tuple[str, ...]] = (*names.RATES, *names.COUNTS, "real_time_factor")
    version: ClassVar[int] = 5

    kind: Literal["transcription"]
    """Word and character error rate (WER, CER)."""
    dataset: str
    """Name of the dataset."""
    split: str = "test"
    """Split of the dataset to transcribe."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """Write a transcript, or an English translation if the data has one."""
    language: Language | None = None
    """Whisper's code of the language in the model's prompt; null: the language of each clip."""
    normalizer: normalizers.Name | None = None
    """Normal form in which transcripts are compared; null: by the language. A change remakes only the report."""
    beams: int = Field(default=1, gt=0, le=1000)
    """Beams of the search; 1: greedy."""
    batch_size: int = Field(default=8, gt=0, le=LARGEST_BATCH)
    """Clips transcribed together."""
    max_new_tokens: int = Field(default=224, gt=0, le=LONGEST)
    """Tokens written at most for each clip; never more than the model's positions."""
    max_clips: int | None = Field(default=None, gt=0, le=MANY)
    """Number of clips, from the first; null: all."""
    dtype: Dtype = "float32"
    """Dtype of the computation and of the weights that are not packed."""
    general: bool = False
    """Whether this is a general-domain set: a loss of quality by fine-tuning is shown as forgetting."""

    def evaluate(self, variant, data: Path | None, folder: Path) -> dict[str, Any]:
        """Write `items.parquet`, a row a clip: reference, hypothesis, and the edits between them. Return the language
        written and the raw rates; under "run" the numbers that vary from run to run.

        Raises:
            QuantuneError: if the model does not know the language, or clips have no translation.
        """
        import time

        import pandas

        from quantune.data import speech
        from quantune.evaluations.metrics import rates
        from quantune.models import finite, loading

        clips = speech.Clips(data, self.split)
        count = min(len(clips), self.max_clips or len(clips))
        references, seconds = clips.texts(self.task)[:count], clips.column("seconds")[:count]
        languages = [self.language or language for language in clips.column("language")[:count]]
        loaded, processor = variant.model(self.dtype), loading.processor(variant.base)
        started = time.time()
        options = {"task": self.task, "num_beams": self.beams, "max_new_tokens": self.max_new_tokens}
        broken = {}
        try:
            hypotheses = speech.transcribe(loaded, processor, clips, languages, self.batch_size, **options)
        except finite.NotFiniteError as error:
            hypotheses, broken = [""] * count, {"broken": str(error)}
        spent = time.time() - started
        spoken = "en" if self.task == "translate" else languages[0]
        items = pandas.DataFrame(
            {
                "id": clips.column("id")[:count],
                "language": languages,
                "seconds": seconds,
                "reference": references,
                "hypothesis": hypotheses,
            }
        )
        items = rates.with_edits(items)
        items.to_parquet(folder / "items.parquet", index=False)
        return {
            "kind": self.kind,
            "language": spoken,
            **rates.error_rates(items, names.RAW_RATES),
            **broken,
            "run": {"real_time_factor": spent / sum(seconds), "audio_seconds": round(sum(seconds), 3)},
        }

    def read(self, folder: Path, model: Path) -> "Measurement":
        """Return the clips with normalized transcripts; the metric is WER, or CER if no spaces separate words."""
        import pandas

        from quantune.artefacts import record
        from quantune.evaluations.metrics import rates
        from quantune.evaluations.metrics.metric import CHARACTER_ERROR_RATE, WORD_ERROR_RATE, Measurement

        result = json.loads((folder / "result.json").read_text())
        language = result["language"]
        name = self.normalizer or normalizers.of_language(language)
        items = pandas.read_parquet(folder / "items.parquet")
        return Measurement(
            CHARACTER_ERROR_RATE if language in UNSPACED else WORD_ERROR_RATE,
            rates.with_edits(items, normalizers.normalizer(name, model)),
            {"language": language, "normalizer": f"{name} {normalizers.VERSIONS[name]}"},
            (record.read_run(folder) or {}).get("real_time_factor"),
            result.get("broken"),
        )

    def workload(self, config: dict[str, Any]) -> Inference:
        """Return the workload: a batch of clips and its beams."""
        batch = self.batch_size * self.beams
        return Inference(self.dtype, batch, self.max_new_tokens + 4, cache=True, logits=1)
