"""Kill a small workflow at random moments, let the same command end it, and compare all files with an undisturbed run.

`make test-kill` runs it. KILLS sets the number of kills, SEED the moments.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from quantune.artefacts.layout import FOLDERS
from tests.workflow import CONFIG, Folder

SKIPPED = {"run.json", ".snakemake_timestamp"}  # they hold dates
DATED = {"report/report.html", "report/provenance.json"}  # the page shows dates, and the provenance holds its hash
LONGEST = 20.0  # seconds from a start to its kill


def config() -> dict:
    """Return a configuration of two steps: a quantization, and a fine-tuning that often saves its state."""
    kept = {key: CONFIG[key] for key in ("models", "datasets", "quantizations")}
    finetunings = {"lora": CONFIG["finetunings"]["lora"] | {"steps": 30, "save_every": 1}}
    evaluations = {"log": CONFIG["evaluations"]["log"]}
    return kept | {"finetunings": finetunings, "evaluations": evaluations, "variants": ["opt+rtn-a", "opt+lora"]}


def contents(folder: Folder) -> dict[str, bytes]:
    """Return path -> content of every file of every artefact, without dates."""
    paths = [path for name in FOLDERS for path in folder.work.glob(f"{name}/**/*")]
    files = {path.relative_to(folder.work).as_posix(): path for path in paths if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if path.name not in SKIPPED and name not in DATED}


def disturb(folder: Folder, chance: random.Random) -> None:
    """Start the workflow and kill it: Snakemake alone, so that its jobs go on, or all of its processes."""
    running = folder.start("--cores", "2")
    time.sleep(chance.uniform(0.5, LONGEST))
    alone = chance.random() < 0.5
    if running.poll() is None:
        os.kill(running.pid, signal.SIGKILL) if alone else os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    folder.run("--unlock")
    made = len(list(folder.work.rglob("provenance.json")))
    print(f"killed {'Snakemake alone' if alone else 'all processes'}; {made} artefacts are made", flush=True)


def main() -> None:
    """Run the workflow undisturbed, then disturbed; exit with 1 if a file differs."""
    kills, seed = int(os.environ.get("KILLS", 20)), int(os.environ.get("SEED", time.time()))
    place, chance = Path(tempfile.mkdtemp(prefix="kill-loop-")), random.Random(seed)
    print(f"{kills} kills, SEED={seed}, in {place}", flush=True)
    undisturbed, disturbed = (Folder(place / name, config()) for name in ("undisturbed", "disturbed"))
    undisturbed.run("--cores", "2")
    for _ in range(kills):
        disturb(disturbed, chance)
    disturbed.run("--cores", "2")
    before, after = contents(undisturbed), contents(disturbed)
    different = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    left = [str(path) for path in disturbed.work.glob("tmp/*")]
    if different or left or disturbed.planned():
        sys.exit(f"different: {different}; left: {left}; the folders are kept in {place}")
    print(f"{len(before)} files are the same, byte for byte")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
