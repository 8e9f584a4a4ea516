"""Print what everything that is not current will take; Snakemake evaluated the table from the plan."""

print(snakemake.params.costs)
