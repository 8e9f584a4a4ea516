"""Merge an adapter into the nearest unquantized ancestor of its parent; save the result as a whole model."""

from math import isfinite

from quantune.artefacts import job


def merge(order, inputs, folder, scratch):
    from quantune.core.errors import QuantuneError
    from quantune.models import adapters, checkpoints, loading, probes

    (base,), (adapter,), (parent,) = inputs["base"], inputs["adapter"], inputs["parent"]
    unmerged = probes.probe_logits(loading.streamed([parent, adapter], "float32"))
    if not unmerged.isfinite().all():
        reason = "has logits that are NaN or infinite, before merging: the training diverged"
        raise QuantuneError(f"the adapter '{adapter.name}' {reason}; lower its 'learning_rate'")
    stored = loading.stored_dtype(base)
    model = adapters.merged(loading.streamed([base, adapter], "float32"), loading.device(), stored)
    checkpoints.save_model(model, base, folder)
    tensors = checkpoints.Tensors(folder)
    for bad in checkpoints.finite(tensors, tensors.names()):
        checkpoints.require(False, bad, f"holds NaN or infinity after merging into {stored}")
    distance = probes.relative_distance(probes.probe_logits(loading.streamed([folder], "float32")), unmerged)
    if not isfinite(distance):
        raise QuantuneError(
            f"merging '{adapter.name}' into '{base.name}' made another model: its logits differ by {distance} from "
            "those of the unmerged adapter; evaluate the adapter without merging"
        )
    print(f"merged into {base.name}, stored as {stored}; logits differ by {distance:.2e} from the unmerged adapter's")
    return {"relative_distance_from_unmerged": distance, "parameters": model.num_parameters()}


job.run(snakemake, merge)
