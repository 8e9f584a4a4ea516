"""Transcribe a recording of any length with a variant: write the text, and the segments with their times."""

import json
import time
from pathlib import Path

from quantune.artefacts import job, layout


def transcribe(order, inputs, folder, scratch):
    from quantune.data import longform
    from quantune.models import loading
    from quantune.sources.recordings import Recording

    recipe = Recording(**order["recipe"], **order["options"]["settings"])
    (checkpoint,), (recording,) = inputs["checkpoint"], map(Path, order["options"]["files"])
    model = loading.fitting([*inputs.get("base", []), checkpoint], recipe.dtype)
    processor = loading.processor(checkpoint)
    rate = processor.feature_extractor.sampling_rate
    samples, started = longform.read(recording, rate), time.time()
    segments = longform.transcribe(
        model, processor, samples, recipe.language, recipe.batch_size, recipe.task, num_beams=recipe.beams
    )
    spent, seconds = time.time() - started, len(samples) / rate
    text = [segment["text"] for segment in segments]
    (folder / "transcript.txt").write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    result = {
        "variant": layout.names(order["path"], "transcripts")[0],
        "language": recipe.language,
        "task": recipe.task,
        "seconds": round(seconds, 3),
        "text": " ".join(text),
        "segments": segments,
    }
    (folder / "transcript.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{seconds:.1f} s of sound, {len(segments)} segments, {spent:.1f} s")
    return {"segments": len(segments), "run": {"real_time_factor": spent / seconds}}


job.run(snakemake, transcribe)
