"""Time of planning, beside a bare Snakemake workflow with as many jobs: a no-op, and the first plan after a change.

PYTHONPATH=. python benchmarks/planning_speed.py 600 4000
"""

import contextlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
REPEATS = 5
BARE = """
import json
JOBS = json.load(open("jobs.json"))
MADE = {path: job for job in JOBS for path in job["output"]}

rule all:
    input: "work/report"

def inputs(wildcards, rule):
    a, b = wildcards.get("a"), wildcards.get("b")
    path = {
        "checkpoint": f"work/checkpoints/{a}",
        "evaluate": f"work/evaluations/{a}/saltmere",
        "data": f"work/sources/{a}",
        "prepared": f"work/prepared/{a}/{b}",
        "report": "work/report",
    }[rule]
    return [ancient(item) for item in MADE[path]["input"]]

rule checkpoint:
    input: lambda wildcards: inputs(wildcards, "checkpoint")
    output: directory("work/checkpoints/{a}")
    params: why=lambda wildcards: ""
    message: "Make {wildcards.a}{params.why}"
    script: "make.py"

rule evaluate:
    input: lambda wildcards: inputs(wildcards, "evaluate")
    output: directory("work/evaluations/{a}/saltmere")
    params: why=lambda wildcards: ""
    message: "Evaluate {wildcards.a}{params.why}"
    script: "make.py"

rule data:
    input: lambda wildcards: inputs(wildcards, "data")
    output: directory("work/sources/{a}")
    script: "make.py"

rule prepared:
    input: lambda wildcards: inputs(wildcards, "prepared")
    output: directory("work/prepared/{a}/{b}")
    script: "make.py"

rule report:
    input: lambda wildcards: inputs(wildcards, "report")
    output: directory("work/report")
    script: "make.py"
"""


def config(count):
    """A configuration of about `count` artefacts: a seed gives four checkpoints, each with one evaluation."""
    assets = ROOT / "assets"
    return {
        "models": {"opt-2m": {"path": str(assets / "models/opt-2m")}},
        "datasets": {
            "saltmere": {
                "path": str(assets / "text/saltmere"),
                "splits": {"train": "train.txt", "validation": "validation.txt", "test": "test.txt"},
            }
        },
        "quantizations": {
            "rtn-w4": {"method": "rtn", "bits": 4, "group_size": 32},
            "rtn-w8": {"method": "rtn", "bits": 8, "group_size": 32},
        },
        "finetunings": {"lora": {"method": "lora", "dataset": "saltmere", "steps": 30, "length": 128}},
        "evaluations": {"saltmere": {"kind": "perplexity", "dataset": "saltmere", "length": 256}},
        "variants": [f"opt-2m+lora@{{0..{count // 8 - 1}}}+merge+{{rtn-w4,rtn-w8}}"],
    }


def fabricate(folder, path):
    """Write every artefact of a configuration with a few small files, as a job would: all are current."""
    os.chdir(folder)
    from quantune.artefacts import making
    from quantune.planning import costs, load
    from quantune.planning.plan import Plan

    making._flush = lambda folder: None  # no fsync
    names = {"checkpoints": ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]}

    def body(place):
        def write(folder, scratch):
            for name in names.get(place.folder, ["items.parquet", "result.json"]):
                (folder / name).write_text(f"{name} of {place}")

        return write

    plan = Plan(load.read(path))
    artefacts = list(costs.with_ancestors(plan.report()))
    for item in artefacts:
        order = item.order() | {"predicted": {"weights": 1000}}
        with contextlib.redirect_stdout(io.StringIO()):
            making.make(order, body(item.place), time.time())
        Path(item.path, ".snakemake_timestamp").touch()
    return artefacts


def bare(folder, artefacts):
    """Write a plain workflow of the same jobs and folders."""
    import json

    from quantune.artefacts.record import by_role

    (folder / "Snakefile").write_text(BARE)
    (folder / "make.py").write_text("print('made')\n")
    jobs = []
    for item in artefacts:
        made_from = {**by_role(item.parents), **item.reads}
        jobs.append({"output": [item.path], "input": [one.path for items in made_from.values() for one in items]})
    (folder / "jobs.json").write_text(json.dumps(jobs))


def seconds(command, folder):
    """Return the CPU seconds (user and system) and the wall seconds of a command, and the number of its jobs."""
    before, started = os.times(), time.time()
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True)
    after, ended = os.times(), time.time()
    assert done.returncode == 0, done.stdout + done.stderr
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return used, ended - started, done.stdout + done.stderr


def measure(count, repeats=REPEATS):
    """Measure with about `count` artefacts, in a folder that is removed unless KEEP is set."""
    folder = Path(tempfile.mkdtemp(prefix="planning-"))
    raw = config(count)
    (folder / "config.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    artefacts = fabricate(folder, "config.yaml")
    raw["finetunings"]["lora"]["rank"] = 4
    (folder / "changed.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    print(f"{len(artefacts)} artefacts in {folder}", flush=True)
    bare(folder, artefacts)
    compare(folder, count, repeats)
    if "KEEP" not in os.environ:
        os.chdir("/")
        shutil.rmtree(folder)


def compare(folder, count, repeats):
    """Print medians of the CPU time of a no-op and of a first plan after a change of every fine-tuning."""
    common = ["--cores", "1", "--rerun-triggers", "mtime", "--profile", "none", "--workflow-profile", "none"]
    python = [sys.executable, "-m", "snakemake", *common]
    ours = [*python, "--snakefile", str(ROOT / "Snakefile"), "--strict-dag-evaluation", "functions"]
    commands = {
        "no-op": ([*python, "--snakefile", "Snakefile"], ours),
        "changed": (
            [*python, "--snakefile", "Snakefile", "-n", "--quiet", "all", "--forceall"],
            [*ours, "-n", "--quiet", "all", "--configfile", "changed.yaml"],
        ),
    }
    for name, (plain, quantune) in commands.items():
        times = {"bare": [], "quantune": []}
        for _ in range(repeats):
            times["bare"].append(seconds(plain, folder)[0])
            used, _, printed = seconds(quantune, folder)
            times["quantune"].append(used)
            assert name != "no-op" or "Nothing to be done" in printed, printed
        low, high = (statistics.median(times[key]) for key in ("bare", "quantune"))
        print(f"{count} {name}: bare {low:.2f} s, quantune {high:.2f} s of CPU, ratio {high / low:.2f}", flush=True)


for size in map(int, sys.argv[1:]):
    measure(size, int(os.environ.get("REPEATS", REPEATS)))
