"""Choose the learning rate of each method of experiments/methods.yaml, and write it there.

    snakemake work-methods/{checkpoints,prepared/quotes}/opt-29m --configfile experiments/methods.yaml
    PYTHONPATH=. python experiments/rates.py            # or some methods only: rates.py lora prefix

Each method trains on 1,000 rows with three rates, a factor of 3 apart, around the one in the file; with up to two more
while the best is the first or the last one. The lowest validation loss decides. No variant has its seed, 0.
"""

import re
import sys
import tempfile
from pathlib import Path

import torch

from quantune.data import examples
from quantune.finetunings.training import loop, loss
from quantune.models import loading
from quantune.planning import documents, load

FILE = Path(__file__).parent / "methods.yaml"
ROWS = "-1000"
FACTOR, MOST = 3, 5  # between two rates; rates of a method


def main() -> None:
    config = load.load(documents.read(FILE))
    parent, prepared = Path(config.work, "checkpoints/opt-29m"), Path(config.work, "prepared/quotes/opt-29m")
    text = FILE.read_text()
    for name, recipe in config.finetunings.items():
        if not name.endswith(ROWS) or (sys.argv[1:] and name.removesuffix(ROWS) not in sys.argv[1:]):
            continue
        losses: dict[float, float] = {}
        tried = [recipe.learning_rate * factor for factor in (1 / FACTOR, 1, FACTOR)]
        while tried and len(losses) < MOST:
            losses |= {rate: lowest_loss(recipe, rate, parent, prepared) for rate in tried}
            best = min(losses, key=losses.get)
            ends = {min(losses): best / FACTOR, max(losses): best * FACTOR}
            tried = [ends[best]] if best in ends else []
        method = name.removesuffix(ROWS)
        print(f"{method}: {best:.2g}; " + ", ".join(f"{rate:.2g} {losses[rate]:.4f}" for rate in sorted(losses)))
        pattern = rf"(?m)(^  {method}: &{method}\s[^}}]*learning_rate: )[\d.e-]+"
        text, count = re.subn(pattern, rf"\g<1>{float(f'{best:.2g}'):.7f}".rstrip("0"), text)
        assert count == 1, f"{FILE} has no learning rate of {method}"
    FILE.write_text(text)


def lowest_loss(recipe, rate: float, parent: Path, prepared: Path) -> float:
    """Return the lowest validation loss of a training with this rate, in nats per token; infinite if it diverges."""
    recipe = recipe.model_copy(update={"learning_rate": rate})
    data, validation = (
        examples.read(prepared, split, parent, recipe.length, most=most)
        for split, most in ((recipe.train_split, recipe.max_samples), (recipe.validation_split, None))
    )
    torch.manual_seed(0)
    model = loading.model([parent], recipe.precision)
    model.config.use_cache = False
    model = recipe.prepare(model, 0)
    with tempfile.TemporaryDirectory() as place, loss.fused(model):
        try:
            return loop.train(model, recipe, 0, data, validation, Path(place), Path(place))["validation_loss"]
        except loop.QuantuneError:
            return float("inf")


if __name__ == "__main__":
    main()
