"""Print the costs of all artefacts that are not current; Snakemake computed the table from the plan."""

print(snakemake.params.costs)
