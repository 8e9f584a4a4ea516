"""Merge an adapter into the nearest unquantized ancestor of its parent; save the result as a whole model."""

from quantune.artefacts import job


def merge(order, inputs, folder, scratch):
    from quantune.models import checkpoints, loading, probes

    (base,), (adapter,), (parent,) = inputs["base"], inputs["adapter"], inputs["parent"]
    unmerged = probes.probe_logits(loading.model([parent, adapter], "float32"))
    model = loading.model([base, adapter], "float32").merge_and_unload()
    stored = loading.stored_dtype(base)
    checkpoints.cast_saved(model, stored)
    checkpoints.save_model(model, base, folder)
    merged = probes.probe_logits(loading.model([folder], "float32"))
    distance = probes.relative_distance(merged, unmerged)
    print(f"merged into {base.name}, stored as {stored}; logits differ by {distance:.2e} from the unmerged adapter's")
    tensors = checkpoints.Tensors(folder)
    for bad in checkpoints.finite(tensors, tensors.names()):
        checkpoints.require(False, bad, "holds NaN or infinity after merging")
    return {"relative_distance_from_unmerged": distance, "parameters": model.num_parameters()}


job.run(snakemake, merge)
