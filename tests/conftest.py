"""What the tests share: a small valid configuration of their own, and the tokenizer of the embedded demo."""

import json
import os
from pathlib import Path

import pytest

from tests.hub import asked, hub, no_waiting  # noqa: F401 (fixtures)
from tests.reports import work  # noqa: F401 (fixture)
from tests.repository import origin, pulled  # noqa: F401 (fixtures)
from tests.spoken import spoken  # noqa: F401 (fixture)
from tests.voices import heard, prepared, processor  # noqa: F401 (fixtures)
from tests.workflow import finished, project  # noqa: F401 (fixtures)

ROOT = Path(__file__).parents[1]
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are of CPUs, wherever they run; GPUs are the benchmarks' part
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny: more threads only wait for one another
OPT = ROOT / "assets/models/opt-2m"
HEADER = b'{"value": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
ONE_TENSOR = len(HEADER).to_bytes(8, "little") + HEADER + bytes(4)  # a file of safetensors


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def tokenizer():
    """The tokenizer of opt-2m (BPE on bytes; begins a text with `</s>`, id 2)."""
    from quantune.models import loading

    return loading.tokenizer(OPT)


@pytest.fixture
def write_model(tmp_path):
    """Return a function that writes a folder in Hugging Face layout: its only tensor has one value."""

    def write(name: str, config: dict | str, weights: str = "model.safetensors") -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        (folder / "tokenizer.json").write_text("{}")
        (folder / "preprocessor_config.json").write_text("{}")
        (folder / weights).write_bytes(ONE_TENSOR)
        return str(folder)

    return write


@pytest.fixture
def raw(tmp_path) -> dict:
    """A valid configuration, as parsed from YAML: one model, two datasets, and a step of every kind."""
    data = tmp_path / "data"
    (data / "harbour").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        (data / "harbour" / f"{split}.txt").write_text(f"The {split} log.\n\nA second entry of it.\n")
    (data / "news.txt").write_text("First story.\n\nSecond story.\n\nThird story.\n")
    files = {split: f"{split}.txt" for split in ("train", "validation", "test")}
    return {
        "work": str(tmp_path / "work"),
        "models": {"opt": {"path": str(OPT)}},
        "datasets": {
            "harbour": {"path": str(data / "harbour"), "splits": files},
            "news": {"path": str(data / "news.txt"), "splits": {"train": 0.5, "test": 0.5}},
        },
        "quantizations": {
            "rtn-w4": {"method": "rtn", "bits": 4, "group_size": 32},
            "rtn-w8": {"method": "rtn", "bits": 8, "group_size": 32},
            "nf4": {"method": "nf4"},
        },
        "finetunings": {"lora": {"method": "lora", "dataset": "harbour", "steps": 10, "length": 16}},
        "evaluations": {
            "harbour": {"kind": "perplexity", "dataset": "harbour", "length": 16},
            "news": {"kind": "perplexity", "dataset": "news", "length": 16, "general": True},
            "prompts": {"kind": "generation", "prompts": ["The wind"]},
        },
        "variants": ["opt+{rtn-w4,rtn-w8}", "opt+nf4+lora", "opt+lora+merge+rtn-w4"],
    }
