"""Print what changed between another run and this one."""

from pathlib import Path

from quantune.core.errors import reported
from quantune.upkeep import runs

with reported():
    print(runs.compared(snakemake.params.other, str(Path(snakemake.input.report).parent)))
