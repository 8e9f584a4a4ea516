"""Decode every clip of a dataset once for each root model: mono, 16 bits, at the rate of the model's feature extractor;
clips that do not fit into its window are dropped and counted.
"""

from quantune.artefacts import job
from quantune.sources import audio


def resample(order, inputs, folder, scratch):
    from quantune.data import speech
    from quantune.models import loading

    (source,), (model,) = inputs["dataset"], inputs["model"]
    extractor, facts = loading.feature_extractor(model), {}
    for path in sorted(source.glob("*.parquet")):
        seconds, dropped = speech.prepare(path, folder / f"{path.stem}.arrow", extractor)
        facts[path.stem] = audio.durations(seconds) | {"longer_than_window": dropped}
        note = f"; dropped: {dropped} longer than {extractor.chunk_length} s" if dropped else ""
        print(f"{path.stem}: {len(seconds)} clips, {sum(seconds) / 3600:.3f} h at {extractor.sampling_rate} Hz{note}")
    return {"sampling_rate": extractor.sampling_rate, "splits": facts}


job.run(snakemake, resample)
