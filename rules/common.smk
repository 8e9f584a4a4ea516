"""Shared by all rules: the checked configuration, the plan, and the functions that decide which jobs run.

Recipe digests decide whether a job runs, not dates or Snakemake's records: see `freshness.Disk` and `Job.inputs`.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

from snakemake import jobs
from snakemake.exceptions import WorkflowError
from snakemake.io import ancient

sys.path.insert(0, str(workflow.basedir))

from quantune.artefacts import freshness, job
from quantune.core import hardware
from quantune.core.errors import QuantuneError, printable
from quantune.core.recipe import NAME, SEED
from quantune.planning import costs, documents, exports, load, resources
from quantune.planning.plan import Plan
from quantune.upkeep import dvc, runs


def stop(message):
    """Stop Snakemake with an error for the user, without a traceback and without a place in the rules."""
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(1)


def call_or_stop(function, *arguments):
    """Return the result of a function of quantune; stop with its error for the user."""
    try:
        return function(*arguments)
    except QuantuneError as error:
        stop(error)


# Snakemake takes them for wildcards: files from outside with them are read, but no inputs of a rule.
BRACES = frozenset("{}")
if BRACES.intersection(str(workflow.basedir)):
    stop(f"Snakemake reads the braces in '{workflow.basedir}' as wildcards; rename this folder")
job.announce(workflow.basedir, sys.argv)
# Snakemake would merge config.yaml into a configuration given on the command line.
call_or_stop(documents.require_sound, workflow.overwrite_configfiles or ["config.yaml"])
if not workflow.overwrite_configfiles:

    configfile: "config.yaml"


OTHER_RUN = config.pop("with", None)  # of the command line, for the rule `compare`; no key of a configuration
CONFIG = call_or_stop(load.load, config, ", ".join(os.path.relpath(path) for path in workflow.configfiles))
PLAN, DISK = Plan(CONFIG), freshness.Disk()
WORK = CONFIG.work
if "DVC_STAGE" in os.environ:  # dvc.yaml started this command
    call_or_stop(dvc.require_watched, PLAN)
CONFIG_BYTES = {path: Path(path).read_bytes() for path in workflow.configfiles}
TRACKS = {
    track: [name for name, entry in CONFIG.datasets.items() if entry.track == track] for track in ("text", "speech")
}
# Four jobs at once for each GPU, unless the command line or a profile sets a number, or jobs run on a cluster: one
# computes, the others import, read their data and wait for their turn (quantune/core/gpu_turns.py), because importing
# takes longer than computing.
if hardware.gpus() and "gpu" not in workflow.global_resources and workflow.global_resources["_nodes"].value is None:
    workflow.register_resource("gpu", 4 * len(hardware.gpus()))
GPU = min(1, len(hardware.gpus()))  # GPUs of a job that computes; 0 if torch can use none
EVALUATIONS = {
    track: [name for name, entry in CONFIG.evaluations.items() if entry.track == track] for track in ("text", "speech")
}
EVALUATIONS = {track: names for track, names in EVALUATIONS.items() if names}
CHAIN = rf"{NAME}(\+{NAME}(@{SEED})?)*"


def step_pattern(names):
    """Return the regular expression of a step with one of these names, such as `lora-quotes` or `lora-quotes@3`."""
    return rf"({'|'.join(map(re.escape, names))})(@{SEED})?" if names else "(?!)"


def name_pattern(names):
    """Return the regular expression of one of these names."""
    return "|".join(map(re.escape, names)) or "(?!)"


async def require_writable(job, require=jobs.Job.check_protected_output):
    """Stop if outputs that are to be made again are write-protected; a dry run shows the plan nevertheless."""
    if not workflow.dryrun:
        await require(job)


jobs.Job.check_protected_output = require_writable


def remove_backups():
    """Remove the copies of outputs that a killed Snakemake left: they would make the next copy fail."""
    shutil.rmtree(workflow.persistence._backup_path, ignore_errors=True)


def settle_dates():
    """Give the inputs of the jobs to run that are dated in the future the present date."""
    freshness.date_now([path for made in workflow.dag.needrun_jobs() for path in made.input])


def require_settled():
    """Stop after a run if an output is out of date again: then the same command must run once more."""
    if "DVC_STAGE" in os.environ and any(Path(path).read_bytes() != content for path, content in CONFIG_BYTES.items()):
        raise WorkflowError(
            f"{', '.join(CONFIG_BYTES)} changed while this ran; run the command again before DVC records it"
        )
    now = freshness.Disk()
    for path in (str(path) for made in workflow.dag.jobs for path in made.output):
        if changed := now.changed_ancestor(path):
            raise WorkflowError(
                f"{changed} was rebuilt with different bytes (another machine, other packages?), so {path} is"
                " out of date; run the same command again"
            )


class Job:
    """Functions of a rule for the artefacts that one of its jobs makes; each method takes the job's wildcards."""

    def __init__(self, artefacts):
        """Take a function that returns the artefact, or the list of artefacts, of a job from its wildcards."""
        self._artefacts = artefacts

    def artefacts(self, wildcards):
        """Return the artefacts that the job makes."""
        made = call_or_stop(self._artefacts, wildcards)
        return made if isinstance(made, list) else [made]

    def inputs(self, wildcards):
        """Return role -> paths of the artefacts' inputs; the job of a stale artefact is forced to run.

        Snakemake ignores the dates of a current artefact's inputs, and whether they are made again.
        """
        inputs = {}
        for artefact in self.artefacts(wildcards):
            state = DISK.state(artefact)
            if state is freshness.State.STALE:
                workflow.dag.forcefiles.add(artefact.path)
            needs = freshness.needs(artefact, state, forced())
            if state is not freshness.State.CURRENT:
                needs["remade"] = sorted(DISK.stale_behind_current(artefact))
            for role, paths in needs.items():
                new = [path for path in paths if path not in inputs.get(role, ()) and not BRACES.intersection(path)]
                new = map(ancient, new) if state is freshness.State.CURRENT else new
                inputs[role] = [*inputs.get(role, ()), *new]
        return inputs

    def params(self, wildcards):
        """Return what the job and its message need: the orders of the artefacts as JSON, the artefacts' last names, and
        why those that exist are made again. One value, because Snakemake evaluates each parameter for every job. No text
        ends a script element: Snakemake's report embeds the parameters."""
        artefacts = self.artefacts(wildcards)
        orders = [item.order() | {"predicted": resources.terms(PLAN, item)} for item in artefacts]
        return {
            "orders": json.dumps(orders).replace("<", "\\u003c"),
            "names": ", ".join(item.place.last for item in artefacts),
            "why": "".join(dict.fromkeys(map(reason, artefacts))),
        }

    def memory_mb(self, wildcards):
        """Return the predicted main memory of the job in MB."""
        return max(resources.host_bytes(PLAN, item) for item in self.artefacts(wildcards)) // 1_000_000


def forced():
    """Return whether the command line forces jobs to run."""
    settings = workflow.dag_settings
    return bool(settings.forceall or settings.forcerun or settings.forcetargets)


def reason(artefact):
    """Return why an artefact that exists is made again, or an empty text."""
    changes = [printable(change).replace("<", "\\u003c") for change in DISK.differences(artefact)]
    more = [f"and {len(changes) - 4} more"] if len(changes) > 5 else []
    return f" [made again because {'; '.join(changes[:4] + more if more else changes)}]" if changes else ""


@cache
def pending_evaluations(variant, track):
    """Return the evaluations of a variant and a track that are not current, or all if all are current.

    They are sorted by dtype, so that a job loads the variant once for each dtype.
    """
    evaluations = [call_or_stop(PLAN.evaluation, variant, name) for name in EVALUATIONS[track]]
    pending = [item for item in evaluations if forced() or DISK.state(item) is not freshness.State.CURRENT]
    return sorted(pending or evaluations, key=lambda item: item.recipe.get("dtype", ""))


def reported_data(wildcards):
    """Return the paths of the datasets of the report."""
    return [item.path for item in PLAN.all_datasets()]


def reported_prepared(wildcards):
    """Return the paths of the report's datasets, prepared for each model."""
    return [item.path for item in PLAN.all_prepared()]


def reported_measurements(wildcards):
    """Return the paths of the report's evaluations and, if the configuration has a benchmark, benchmarks."""
    parents = PLAN.report().parents
    return [item.path for role in ("evaluations", "benchmarks") for item in parents.get(role, ())]


def listed_checkpoints(wildcards):
    """Return the paths of the checkpoints of the listed variants."""
    return [PLAN.checkpoint(str(variant)).path for variant in CONFIG.listed]


def listed_evaluations(wildcards):
    """Return the paths of the evaluations of the listed variants and their ancestors."""
    pairs = [(str(variant), name) for variant in CONFIG.evaluated for name in CONFIG.evaluations_of(variant.model)]
    return [PLAN.evaluation(variant, name).path for variant, name in pairs]


def listed_transcripts(wildcards):
    """Return the paths of the transcripts of the configured recordings by the listed speech variants."""
    return [call_or_stop(PLAN.transcript, *names).path for names in call_or_stop(lambda: CONFIG.transcribed)]


def listed_benchmarks(wildcards):
    """Return the paths of the benchmarks of the listed variants and their models."""
    return [call_or_stop(PLAN.benchmark, name).path for name in CONFIG.benchmarked or map(str, CONFIG.listed)]


def listed_exports(wildcards):
    """Return the paths of the exports of the configuration."""
    pairs = call_or_stop(exports.requested, CONFIG)
    if not pairs:
        stop("the key 'exports' is missing; write it, such as 'exports: [VARIANT/safetensors]'")
    return [call_or_stop(PLAN.export, *pair).path for pair in pairs]


def planned_costs(wildcards):
    """Return a text table of the costs of all artefacts that are not current."""
    return costs.table(call_or_stop(costs.of_plan, PLAN))


def compared_with(wildcards):
    """Return the run that `--config 'with=...'` names."""
    return call_or_stop(runs.require, OTHER_RUN)


def all_cores(wildcards):
    """Return the number of cores of this run, for a job that must run alone."""
    return (
        workflow.global_resources["_cores"].value if "_cores" in workflow.global_resources else None
    ) or CONFIG.threads


def all_gpus(wildcards):
    """Return the number of GPUs of this run; 1 if jobs run on a cluster and no limit is given."""
    given = workflow.global_resources.get("gpu")
    return GPU and (given.value if given else 1)


def explain_unknown(wildcards):
    """Stop with the reason why no rule makes a target below the work folder; other targets need no input."""
    call_or_stop(PLAN.require_target, wildcards.unknown)
    return []


wildcard_constraints:
    model=NAME,
    dataset=NAME,
    recording=NAME,
    format=NAME,
    variant=CHAIN,
    parent=CHAIN,
    quantization=step_pattern(CONFIG.quantizations),
    finetuning=step_pattern(CONFIG.finetunings),
    merge="merge",
