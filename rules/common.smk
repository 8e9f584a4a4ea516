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

from quantune.artefacts import freshness, job
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


class Job:
    """What a rule needs to know of the artefacts that one of its jobs makes; each method takes the job's wildcards."""

    def __init__(self, artefacts):
        """Take a function from wildcards to an artefact, or to all that one job makes."""
        self._artefacts = artefacts

    def artefacts(self, wildcards):
        """Return the artefacts that the job makes."""
        made = clearly(self._artefacts, wildcards)
        return made if isinstance(made, list) else [made]

    def inputs(self, wildcards):
        """Return role -> paths of what the artefacts are made from: of a current one with dates ignored."""
        found = {}
        for artefact in self.artefacts(wildcards):
            state = freshness.state(artefact)
            needs = freshness.needs(artefact, state, forced())
            if state is freshness.State.STALE:
                needs.inputs["stale"] = [freshness.marker(artefact, WORK)]
            for role, paths in needs.inputs.items():
                new = [path for path in paths if path not in found.get(role, [])]
                found[role] = [*found.get(role, []), *(new if needs.dated else map(ancient, new))]
        return found

    def orders(self, wildcards):
        """Return all that the job needs to know of each artefact, and the memory predicted, to be recorded."""
        return [item.order() | {"predicted": resources.terms(PLAN, item)} for item in self.artefacts(wildcards)]

    def order(self, wildcards):
        """Return all that the job needs to know of its one artefact."""
        return self.orders(wildcards)[0]

    def names(self, wildcards):
        """Return the last names of the artefacts, for the job's message."""
        return ", ".join(item.place.last for item in self.artefacts(wildcards))

    def why(self, wildcards):
        """Return why artefacts that exist are made again, for the job's message and log, or an empty text."""
        return "".join(dict.fromkeys(map(reason, self.artefacts(wildcards))))

    def memory_mb(self, wildcards):
        """Return the main memory in MB, from the sizes of the model and of its work."""
        return max(resources.host_bytes(PLAN, item) for item in self.artefacts(wildcards)) // 1_000_000


def forced():
    """Return whether the command line asks for jobs whatever their state."""
    settings = workflow.dag_settings
    return bool(settings.forceall or settings.forcerun or settings.forcetargets)


def reason(artefact):
    """Return why an artefact that exists is made again, or an empty text."""
    changes = freshness.differences(artefact)
    more = [f"and {len(changes) - 4} more"] if len(changes) > 5 else []
    return f" [made again because {'; '.join(changes[:4] + more if more else changes)}]" if changes else ""


@cache
def open_evaluations(variant, track):
    """Return the evaluations of a track that a job must make of a variant, those of one dtype together.

    These are those that are not current; all of them, if none is.
    """
    found = [clearly(PLAN.evaluation, variant, name) for name in EVALUATIONS[track]]
    left = [item for item in found if forced() or freshness.state(item) is not freshness.State.CURRENT]
    return sorted(left or found, key=lambda item: item.recipe.get("dtype", ""))


def reported_data(wildcards):
    """Return the datasets that the report rests on."""
    return [item.path for item in PLAN.all_datasets()]


def reported_prepared(wildcards):
    """Return these datasets as the models read them."""
    return [item.path for item in PLAN.all_prepared()]


def reported_measurements(wildcards):
    """Return the evaluations and, where the configuration asks for them, the benchmarks that the report rests on."""
    parents = PLAN.report().parents
    return [item.path for role in ("evaluations", "benchmarks") for item in parents.get(role, ())]


def listed_checkpoints(wildcards):
    """Return the checkpoints of the variants in the configuration."""
    return [PLAN.checkpoint(str(variant)).path for variant in CONFIG.listed]


def listed_evaluations(wildcards):
    """Return the evaluations of the variants in the configuration and of their ancestors."""
    asked = [(str(variant), name) for variant in CONFIG.evaluated for name in CONFIG.evaluations_of(variant.model)]
    return [PLAN.evaluation(variant, name).path for variant, name in asked]


def listed_transcripts(wildcards):
    """Return the transcripts of the configured recordings by the speech variants in the configuration."""
    return [clearly(PLAN.transcript, *asked).path for asked in clearly(lambda: CONFIG.transcribed)]


def listed_benchmarks(wildcards):
    """Return the benchmarks of the variants in the configuration and of their models."""
    return [clearly(PLAN.benchmark, name).path for name in CONFIG.benchmarked or map(str, CONFIG.listed)]


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
