"""Print what changed between another run and this one."""

from quantune.core.errors import reported
from quantune.upkeep import runs

with reported():
    print(runs.compared(snakemake.params.other, snakemake.params.work))
