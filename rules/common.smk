"""What all rules share: the checked configuration, the plan, and the functions that decide what runs.

Whether a job runs is decided here by recipe digests, not by dates or by Snakemake's records: see `needs`.
"""

import os
import re
import shutil
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.io import ancient

sys.path.insert(0, str(workflow.basedir))

from quantune.artefacts import freshness, job, record
from quantune.core import hardware
from quantune.core.errors import QuantuneError
from quantune.core.recipe import NAME, SEED
from quantune.planning import costs, load, resources
from quantune.planning.plan import Plan
from quantune.upkeep import dvc


def clearly(function, *arguments):
    """Call a function of quantune; what the user can mend stops Snakemake with that message alone."""
    try:
        return function(*arguments)
    except QuantuneError as error:
        raise WorkflowError(str(error)) from None


job.announce(workflow.basedir, sys.argv)
CONFIG = clearly(load.load, config, ", ".join(os.path.relpath(path) for path in workflow.configfiles))
PLAN = Plan(CONFIG)
WORK = CONFIG.work
if "DVC_STAGE" in os.environ:  # this is a command of dvc.yaml
    clearly(dvc.require_watched, PLAN)
READ = {path: Path(path).read_bytes() for path in workflow.configfiles}
TRACKS = {
    track: [name for name, entry in CONFIG.datasets.items() if entry.track == track] for track in ("text", "speech")
}
# Four jobs at once for each GPU, unless the command line or a profile says, or jobs run on a cluster: one computes, the
# others import, read their data and wait for their turn (quantune/core/gpu_turns.py). Importing takes longer than computing does.
if hardware.gpus() and "gpu" not in workflow.global_resources and workflow.global_resources["_nodes"].value is None:
    workflow.register_resource("gpu", 4 * len(hardware.gpus()))
EVALUATIONS = {
    track: [name for name, entry in CONFIG.evaluations.items() if entry.track == track] for track in ("text", "speech")
}
EVALUATIONS = {track: names for track, names in EVALUATIONS.items() if names}
CHAIN = rf"{NAME}(\+{NAME}(@{SEED})?)*"


def one_of(names):
    """Return the pattern of a step with one of these names, such as `lora-quotes` or `lora-quotes@3`."""
    return rf"({'|'.join(map(re.escape, names))})(@{SEED})?" if names else "(?!)"


def any_of(names):
    """Return the pattern of one of these names."""
    return "|".join(map(re.escape, names)) or "(?!)"


def needs(artefact):
    """Return the named inputs of the job that makes an artefact.

    Missing: its parents. Stale: its parents and a marker newer than it, so that it runs. Current (the digest it records
    is the one expected, every file is what was made): those parents that exist, with their dates ignored, so that
    nothing runs. With a missing one, Snakemake would run it wherever that is made again for something else.
    """
    made_from = {**record.roles(artefact.parents), **artefact.reads}
    inputs = {role: [item.path for item in items] for role, items in made_from.items()}
    inputs["outside"] = artefact.outside
    state, asked = freshness.state(artefact), workflow.dag_settings
    if state is freshness.State.CURRENT:
        forced = asked.forceall or asked.forcerun or asked.forcetargets
        there = {role: [path for path in paths if forced or os.path.lexists(path)] for role, paths in inputs.items()}
        return {role: [ancient(path) for path in paths] for role, paths in there.items()}
    if state is freshness.State.STALE:
        inputs["stale"] = [freshness.marker(artefact, WORK)]
    return inputs


def forget_backups():
    """Remove the copies of outputs that a killed Snakemake left: the next one that copies there would fail."""
    shutil.rmtree(workflow.persistence._backup_path, ignore_errors=True)


def require_settled():
    """Stop, after a run, if what was made is not what should be shown: then the same command has more to do."""
    if "DVC_STAGE" in os.environ and any(Path(path).read_bytes() != then for path, then in READ.items()):
        raise WorkflowError(f"{', '.join(READ)} changed while this ran; run the command again before DVC records it")
    for path in (path for made in workflow.dag.jobs for path in made.output):
        if changed := freshness.other_bits(path):
            raise WorkflowError(
                f"{changed} was made again with other bits than before (another machine, other packages?), so {path} is"
                " out of date; run the same command again"
            )


def reason(artefact):
    """Return why an artefact that exists is made again, for the job's message and log."""
    changes = freshness.differences(artefact)
    more = [f"and {len(changes) - 4} more"] if len(changes) > 5 else []
    return f" [made again because {'; '.join(changes[:4] + more if more else changes)}]" if changes else ""


def planned(wildcards):
    """Return the artefact that a job's wildcards name; without wildcards, the report."""
    given = dict(wildcards.items())
    if "recording" in given:
        return clearly(PLAN.transcript, given["variant"], given["recording"])
    if "variant" in given:
        return clearly(PLAN.benchmark, given["variant"])
    if "dataset" in given and "model" in given:
        return clearly(PLAN.prepared, given["dataset"], given["model"])
    if "dataset" in given:
        return clearly(PLAN.dataset, given["dataset"])
    if given:
        return clearly(PLAN.checkpoint, "+".join(given.values()))
    return clearly(PLAN.report)


def planned_inputs(wildcards):
    """Return the named inputs of the job that the wildcards name."""
    return needs(planned(wildcards))


def planned_order(wildcards):
    """Return all that the job needs to know, and the memory that it is predicted to take, to be recorded."""
    artefact = planned(wildcards)
    return artefact.order() | {"predicted": resources.terms(PLAN, artefact)}


def planned_reason(wildcards):
    """Return why the job runs again, or an empty text."""
    return reason(planned(wildcards))


@cache
def open_evaluations(variant, track):
    """Return the evaluations of a track that a job must make of a variant: those not current; all, if none is."""
    found = [clearly(PLAN.evaluation, variant, name) for name in EVALUATIONS[track]]
    asked = workflow.dag_settings
    forced = asked.forceall or asked.forcerun or asked.forcetargets
    left = [item for item in found if forced or freshness.state(item) is not freshness.State.CURRENT]
    return left or found


def evaluation_inputs(track):
    """Return the function that gives the named inputs of the job that evaluates a variant."""

    def inputs(wildcards):
        given = {}
        for item in open_evaluations(wildcards.variant, track):
            for role, paths in needs(item).items():
                given[role] = [*given.get(role, []), *(path for path in paths if path not in given.get(role, []))]
        return given

    return inputs


def evaluation_orders(track):
    """Return the function that gives all that the job needs to know of each evaluation, those of one dtype together."""

    def orders(wildcards):
        found = open_evaluations(wildcards.variant, track)
        ordered = [item.order() | {"predicted": resources.terms(PLAN, item)} for item in found]
        return sorted(ordered, key=lambda order: order["recipe"].get("dtype", ""))

    return orders


def evaluation_names(track):
    """Return the function that names the evaluations that the job makes."""
    return lambda wildcards: ", ".join(Path(item.path).name for item in open_evaluations(wildcards.variant, track))


def evaluation_reasons(track):
    """Return the function that says why evaluations are made again, each reason once, or gives an empty text."""
    return lambda wildcards: "".join(dict.fromkeys(map(reason, open_evaluations(wildcards.variant, track))))


def evaluation_memory_mb(track):
    """Return the function that gives the job's main memory in MB: that of the evaluation that takes most."""

    def memory(wildcards):
        found = open_evaluations(wildcards.variant, track)
        return max(resources.host_bytes(PLAN, item) for item in found) // 1_000_000

    return memory


def asked_data(wildcards):
    """Return the datasets that the report rests on."""
    return [item.path for item in PLAN.all_datasets()]


def asked_prepared(wildcards):
    """Return these datasets as the models read them."""
    return [item.path for item in PLAN.all_prepared()]


def asked_measurements(wildcards):
    """Return the evaluations and, where the configuration asks for them, the benchmarks that the report rests on."""
    parents = PLAN.report().parents
    return [item.path for role in ("evaluations", "benchmarks") for item in parents.get(role, ())]


def asked_checkpoints(wildcards):
    """Return the checkpoints of the variants in the configuration."""
    return [PLAN.checkpoint(str(variant)).path for variant in CONFIG.listed]


def asked_evaluations(wildcards):
    """Return the evaluations of the variants in the configuration and of their ancestors."""
    asked = [(str(variant), name) for variant in CONFIG.evaluated for name in CONFIG.evaluations_of(variant.model)]
    return [PLAN.evaluation(variant, name).path for variant, name in asked]


def asked_transcripts(wildcards):
    """Return the transcripts of the configured recordings by the speech variants in the configuration."""
    return [clearly(PLAN.transcript, *asked).path for asked in clearly(lambda: CONFIG.transcribed)]


def asked_benchmarks(wildcards):
    """Return the benchmarks of the variants in the configuration and of their models."""
    return [clearly(PLAN.benchmark, name).path for name in CONFIG.benchmarked or map(str, CONFIG.listed)]


def memory_mb(wildcards):
    """Return a job's main memory in MB, from the sizes of the model and of its work."""
    return resources.host_bytes(PLAN, planned(wildcards)) // 1_000_000


def planned_costs(wildcards):
    """Return what everything that is not current will cost, as a table."""
    return costs.table(clearly(costs.of_plan, PLAN))


def gpus(wildcards):
    """Return how many GPUs a job that computes takes: one where there are any that torch can use."""
    return min(1, len(hardware.gpus()))


def all_cores(wildcards):
    """Return every core that this run may use, for a job that nothing may run beside."""
    return (
        workflow.global_resources["_cores"].value if "_cores" in workflow.global_resources else None
    ) or CONFIG.threads


def all_gpus(wildcards):
    """Return every GPU that this run may use: one, where jobs run elsewhere and nothing says how many are there."""
    given = workflow.global_resources.get("gpu")
    return gpus(wildcards) and (given.value if given else 1)


def explain_unknown(wildcards):
    """Stop with what is wrong with a target below the work folder that no rule makes; other targets need nothing."""
    clearly(PLAN.explain, wildcards.unknown)
    return []


wildcard_constraints:
    model=NAME,
    dataset=NAME,
    recording=NAME,
    variant=CHAIN,
    parent=CHAIN,
    quantization=one_of(CONFIG.quantizations),
    finetuning=one_of(CONFIG.finetunings),
    merge="merge",
    unknown=r"(?!\.stale/).+",  # the markers of `needs` are made by no rule
