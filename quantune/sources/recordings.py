"""The entry for a recording of your own to transcribe."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from quantune.core.recipe import LARGEST_BATCH, Dtype, NonEmpty, Recipe
from quantune.core.workload import Inference
from quantune.sources.entries import Language


class Recording(Recipe):
    """A recording of your own to transcribe, of any length; identified by its content."""

    settings: ClassVar[frozenset[str]] = frozenset({"path", "batch_size"})

    path: NonEmpty
    """The file: WAV, FLAC, MP3 or OGG; may hold environment variables."""
    language: Language
    """Whisper's code of the language spoken, such as en or zh."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """Write the spoken words, or their English translation."""
    beams: int = Field(default=1, gt=0, le=1000)
    """Beams of the search; 1: greedy."""
    batch_size: int = Field(default=8, gt=0, le=LARGEST_BATCH)
    """Windows transcribed together."""
    dtype: Dtype = "float32"
    """Dtype of the computation and of the weights that are not packed."""

    def workload(self, config: dict[str, Any]) -> Inference:
        """Return the workload of transcribing with a model of this config.json, for estimates of memory."""
        positions = config["max_target_positions"]
        return Inference(self.dtype, self.batch_size * self.beams, positions, cache=True, logits=1)
