"""What a fine-tuning trains: its size, and an adapter saved so that the same adapter gives the same bytes."""

import json
from pathlib import Path


def save_adapter(model, folder: Path) -> None:
    """Save a `PeftModel`'s adapter so that the same adapter gives the same bytes.

    PEFT writes the target modules in the order of a Python set, which varies from process to process, and an empty
    model card, which is left out: `provenance.json` says more.
    """
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def parameters(model) -> tuple[int, int]:
    """Return how many parameters of a model are trained, and how many it has, whatever they are packed into."""
    from quantune.models.packed_linear import dense_parameters

    trained, total = model.get_nb_trainable_parameters()
    return trained, total + dense_parameters(model)
