"""What differs between text and speech when a model is trained or calibrated: how it reads its data."""

from pathlib import Path

from quantune import loading, speech, text
from quantune.finetunings import Finetuning
from quantune.training import Data


def examples(recipe: Finetuning, prepared: Path, split: str, checkpoint: Path) -> Data:
    """Return a split as training examples of the model in a checkpoint folder.

    Raises:
        QuantuneError: if the split is too small, or no example fits into the model.
    """
    if loading.is_speech(checkpoint):
        positions = loading.config(checkpoint).max_target_positions
        return speech.Examples(prepared, split, recipe.task, loading.processor(checkpoint), positions)
    text.require_length(loading.config(checkpoint), recipe.length)
    return text.Blocks(prepared, split, loading.tokenizer(checkpoint).eos_token_id, recipe.length)
