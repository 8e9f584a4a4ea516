"""What differs between text and speech when a model is trained or calibrated: how it reads its data."""

from pathlib import Path

from quantune import loading, speech, text
from quantune.calibration import Calibrated
from quantune.finetunings import Finetuning
from quantune.training import Data


def samples(recipe: Calibrated, prepared: Path, checkpoint: Path) -> text.Blocks | speech.Examples:
    """Return the split that a method is calibrated on, as the model in a checkpoint folder reads it.

    Raises:
        QuantuneError: if the split is too small, or no sample fits into the model.
    """
    return _read(prepared, recipe.split, checkpoint, "transcribe", recipe.length)


def examples(recipe: Finetuning, prepared: Path, split: str, checkpoint: Path) -> Data:
    """Return a split as training examples of the model in a checkpoint folder.

    Raises:
        QuantuneError: if the split is too small, or no example fits into the model.
    """
    return _read(prepared, split, checkpoint, recipe.task, recipe.length)


def _read(
    prepared: Path, split: str, checkpoint: Path, task: speech.Task, length: int
) -> text.Blocks | speech.Examples:
    config = loading.config(checkpoint)
    if loading.is_speech(checkpoint):
        processor, multilingual = loading.processor(checkpoint), speech.knows_languages(checkpoint)
        return speech.Examples(prepared, split, task, processor, config.max_target_positions, multilingual)
    text.require_length(config, length)
    return text.Blocks(text.blocks(prepared, split, loading.tokenizer(checkpoint).eos_token_id, length))
