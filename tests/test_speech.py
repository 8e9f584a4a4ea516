"""Speech as a model reads it, and Whisper quantized, adapted and transcribing."""

import copy
import json
import math
import shutil

import numpy
import pytest
import torch

from quantune.core.errors import QuantuneError
from quantune.data import speech
from quantune.data.batches import IGNORED
from quantune.data.examples import read
from quantune.finetunings.lora import LoRA
from quantune.finetunings.training import loop
from quantune.models import checkpoints, loading
from quantune.quantizations import methods
from quantune.quantizations.arithmetic import layerwise
from quantune.sources import audio
from tests.voices import WHISPER, gather, sound

METHODS = {recipe.model_fields["method"].annotation.__args__[0]: recipe for recipe in methods()}


def test_a_stereo_file_at_96_khz_becomes_mono_at_the_models_rate(tmp_path, processor):
    path = sound(tmp_path / "clips/a.wav", seconds=1.0, rate=96000, channels=2)
    samples, rate, channels = audio.decode(path.read_bytes())
    assert (rate, channels, samples.shape) == (96000, 2, (96000,))
    (tmp_path / "clips/all.tsv").write_text("path\ttext\na.wav\tx\n")
    source, facts = gather(tmp_path / "work", layout="manifest", path=tmp_path / "clips", language="en")
    assert facts["splits"]["train"]["longest_seconds"] == 1.0
    seconds, dropped = speech.prepare(source / "train.parquet", tmp_path / "train.arrow", processor.feature_extractor)
    assert (seconds, dropped) == ([1.0], 0)
    made = speech.Clips(tmp_path, "train")[0]
    expected = 0.35 * numpy.sin(2 * numpy.pi * 220 * numpy.arange(16000) / 16000)  # mean of 0.3 and 0.4
    assert made.shape == (16000,) and numpy.abs(made - expected)[200:-200].max() < 1e-3


def test_clips_longer_than_the_window_are_dropped_and_counted(tmp_path, processor):
    for name, seconds in (("a", 1), ("b", 5)):
        sound(tmp_path / f"clips/{name}.wav", seconds)
    (tmp_path / "clips/all.tsv").write_text("path\ttext\na.wav\tx\nb.wav\ty\n")
    source, _ = gather(tmp_path / "work", layout="manifest", path=tmp_path / "clips", language="en")
    kept = speech.prepare(source / "train.parquet", tmp_path / "train.arrow", processor.feature_extractor)
    assert kept == ([1.0], 1) and speech.Clips(tmp_path, "train").column("id") == ["a.wav"]
    with pytest.raises(QuantuneError, match="no split 'test'; splits: train"):
        speech.Clips(tmp_path, "test")
    with pytest.raises(QuantuneError, match="1 of 1 clips have no translation; name its column in 'translation'"):
        speech.Clips(tmp_path, "train").texts("translate")


def test_transcripts_begin_with_language_and_task_and_labels_leave_out_the_start_and_the_padding(processor):
    tokenizer = processor.tokenizer
    encoded = speech.encode(["Hello there.", "A"], ["en", "zh"], "translate", tokenizer)
    spelled = tokenizer.convert_ids_to_tokens(encoded[1])
    assert spelled[:4] == ["<|startoftranscript|>", "<|zh|>", "<|translate|>", "<|notimestamps|>"]
    assert spelled[-1] == "<|endoftext|>"
    assert tokenizer.convert_ids_to_tokens(encoded[0])[1] == "<|en|>"
    made = speech.labels(encoded)
    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    assert made.shape == (2, len(encoded[0]) - 1) and not (made == start).any()
    short = len(encoded[1]) - 1
    assert made[1, :short].tolist() == encoded[1][1:] and (made[1, short:] == IGNORED).all()


NEW = ("is_multilingual", "lang_to_id", "task_to_id", "no_timestamps_token_id")


@pytest.mark.parametrize(
    ("lacks", "more", "prompt"),
    [
        (NEW[1:3], {"is_multilingual": False}, ["<|startoftranscript|>", "<|notimestamps|>"]),  # the `.en` models
        (NEW, {}, ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]),  # older fine-tuned ones
        (
            NEW,
            {"forced_decoder_ids": [[1, 5], [2, 6]]},
            ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"],
        ),
    ],
)
def test_a_model_is_trained_on_the_prompt_that_it_is_decoded_with(
    tmp_path, prepared, processor, monkeypatch, lacks, more, prompt
):
    monkeypatch.setattr(speech, "MULTILINGUAL", 0)  # the vocabulary of the small model
    folder = shutil.copytree(WHISPER, tmp_path / "model")
    settings = json.loads((folder / "generation_config.json").read_text())
    settings = {key: value for key, value in settings.items() if key not in lacks} | more
    (folder / "generation_config.json").write_text(json.dumps(settings))
    speech.encode(["Hello."], ["en"], "transcribe", processor.tokenizer)  # what was set before must not remain
    examples = read(prepared, "train", folder, 512)
    model = loading.model([folder], "float32")
    (inputs,) = examples.inputs([0])
    prompts, decoder = [], model.get_decoder()
    decoder.register_forward_pre_hook(lambda _, args, given: prompts.append(given["input_ids"]), with_kwargs=True)
    speech.transcribe(model, processor, [examples.clips[0]], ["en"], 1, "transcribe", max_new_tokens=8)
    assert processor.tokenizer.convert_ids_to_tokens(prompts[0][0]) == prompt
    assert inputs["decoder_input_ids"][0, : len(prompt)].tolist() == prompts[0][0].tolist()
    assert not processor.tokenizer.convert_ids_to_tokens(int(inputs["decoder_input_ids"][0, len(prompt)])).startswith(
        "<|"
    )


def test_an_english_only_model_is_not_given_other_languages(tmp_path, prepared, processor, monkeypatch):
    model = loading.model([WHISPER], "float32")
    model.generation_config.is_multilingual = False
    with pytest.raises(QuantuneError, match="the model does not know the language 'zh'; languages: en"):
        speech.transcribe(model, processor, [numpy.zeros(16000, "float32")], ["zh"], 1, "transcribe")
    monkeypatch.setattr(speech.Clips, "column", lambda self, name: ["en", "zh"] if name == "language" else ["a", "b"])
    with pytest.raises(
        QuantuneError, match="the model is English-only, and 'train' holds clips in other languages: zh"
    ):
        speech.Examples(prepared, "train", "transcribe", processor, 64, multilingual=False)


def test_padding_does_not_change_the_loss(prepared, processor):
    examples = speech.Examples(prepared, "test", "transcribe", processor, 64)
    order = sorted(range(len(examples)), key=examples.lengths().__getitem__)
    model = loading.model([WHISPER], "float32")
    with torch.no_grad():
        alone = [model(**examples.batch([number])) for number in (order[0], order[-1])]
        together = model(**examples.batch([order[0], order[-1]]))
    counts = [examples.lengths()[number] - 1 for number in (order[0], order[-1])]
    mean = sum(count * float(item.loss) for count, item in zip(counts, alone, strict=True)) / sum(counts)
    assert counts[0] < counts[1] and float(together.loss) == pytest.approx(mean, rel=1e-4)
    assert mean < 1  # Whisper puts the start token before the labels by itself: it reads what it was trained on


def test_each_epoch_is_a_permutation_with_batches_of_similar_length():
    lengths = numpy.random.default_rng(0).integers(5, 60, 203).tolist()
    order = loop.Order(203, 3, lengths, 4)
    epochs = [[order.example(epoch * 203 + place) for place in range(203)] for epoch in range(2)]
    assert all(sorted(epoch) == list(range(203)) for epoch in epochs) and epochs[0] != epochs[1]
    again = loop.Order(203, 3, lengths, 4)
    assert [again.example(203 + place) for place in range(203)] == epochs[1], "a resumed run goes on in it"

    def padding(epoch: list[int]) -> int:
        batches = [[lengths[number] for number in epoch[first : first + 4]] for first in range(0, 203, 4)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    assert padding(epochs[0]) < padding(list(range(203))) / 3


def test_calibration_goes_through_encoder_and_decoder(prepared):
    model = layerwise.load(WHISPER)
    recipe = METHODS["gptq"](method="gptq", dataset="talks", bits=4, group_size=32, samples=4)
    samples = read(prepared, recipe.split, WHISPER, recipe.length)
    visited = {}
    layerwise.stream(
        model,
        list(samples.inputs([0, 1, 2, 3])),
        lambda name, layer, groups: visited.setdefault(name, [sorted(group.layers) for group in groups]),
        requantized=True,
    )
    counts = {"encoder": model.config.encoder_layers, "decoder": model.config.decoder_layers}
    assert list(visited) == [f"model.{part}.layers.{number}" for part in counts for number in range(counts[part])]
    layers = {name for groups in visited.values() for group in groups for name in group}
    assert layers == {name for name in checkpoints.linear_layers(WHISPER) if ".layers." in name}
    first = "model.decoder.layers.0"
    assert [f"{first}.encoder_attn.k_proj", f"{first}.encoder_attn.v_proj"] in visited[first]


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_quantized_whisper_reloads_exactly_and_transcribes(tmp_path, prepared, processor, heard, method):
    keys = {} if method == "rtn" else {"dataset": "talks", "split": "test", "samples": 8}
    recipe = METHODS[method](method=method, bits=8, group_size=32, **keys)
    folder = tmp_path / method
    folder.mkdir()
    facts = recipe.quantize(WHISPER, folder, prepared, 0)  # compares the logits after reloading, bit by bit
    facts |= recipe.check(WHISPER, folder)
    assert facts["layers_quantized"] == len(checkpoints.linear_layers(WHISPER))
    made, wanted = (
        speech.transcribe(loading.model([place], "float32"), processor, heard[0][:4], ["en"] * 4, 4, "transcribe")
        for place in (folder, WHISPER)
    )
    assert sum(one == other for one, other in zip(made, wanted, strict=True)) >= 3


def test_transcripts_keep_their_order_and_repeat_no_warning(heard, processor, capfd):
    waves, texts = heard
    model = loading.model([WHISPER], "float32")
    found = speech.transcribe(model, processor, waves, ["en"] * 8, 3, "transcribe", max_new_tokens=224)
    assert sum(one == other for one, other in zip(found, texts, strict=True)) >= 3
    printed = capfd.readouterr().err
    assert "max_length" not in printed and "attention mask" not in printed
    cut = speech.transcribe(model, processor, waves[3:4], ["en"], 1, "transcribe", max_new_tokens=3)[0]
    assert 0 < len(processor.tokenizer(cut, add_special_tokens=False).input_ids) <= 3
    with pytest.raises(QuantuneError, match="does not know the language 'fr'; languages: en, zh"):
        speech.transcribe(model, processor, waves[:1], ["fr"], 1, "transcribe")


def test_lora_on_whisper_learns_and_goes_on_where_it_was_cut_off(tmp_path, prepared, processor):
    keys = {"method": "lora", "dataset": "talks", "rank": 4, "learning_rate": 3e-3, "batch_size": 2}
    recipe = LoRA(**keys, steps=4, evaluate_every=4, save_every=2)
    examples = read(prepared, "train", WHISPER, recipe.length, recipe.task)

    def trained(folder, stop: int | None = None):
        folder.mkdir(exist_ok=True)
        model = recipe.prepare(loading.model([WHISPER], "float32"), 0)
        data = copy.copy(examples)
        if stop:
            data.batch = cut_off(examples.batch, stop)
        held_out = None if stop else examples
        return model, loop.train(model, recipe, 0, data, held_out, folder, folder)

    whole, facts = trained(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        trained(tmp_path / "cut", stop=3)
    resumed, again = trained(tmp_path / "cut")
    losses = [float(line.split(",")[-1]) for line in (tmp_path / "whole/curves.csv").read_text().splitlines()[1:]]
    assert losses[-1] < losses[0] and math.isfinite(facts["train_loss"])
    assert again["run"]["resumed_from_step"] == 2
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_accumulated_gradients_equal_those_of_the_whole_batch(tmp_path, prepared, monkeypatch):
    """Transcripts differ in length, so the mean of the batches' mean losses is not the mean loss."""
    keys = {"method": "lora", "dataset": "talks", "rank": 4, "steps": 1, "validation_split": None}
    gradients = []

    def recorded(parameters, limit):
        gradients.append(torch.cat([parameter.grad.flatten().clone() for parameter in parameters]))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", recorded)
    for sizes in ({"batch_size": 6}, {"batch_size": 1, "gradient_accumulation": 6}):
        recipe = LoRA(**keys, **sizes)
        examples = read(prepared, "train", WHISPER, recipe.length, recipe.task)
        examples.lengths = lambda: None  # the same six examples whatever the batch
        model = recipe.prepare(loading.model([WHISPER], "float32"), 0)
        loop.train(model, recipe, 0, examples, None, tmp_path, tmp_path)
    whole, parts = gradients
    assert (parts - whole).norm() / whole.norm() < 1e-5


def cut_off(batch, stop: int):
    """Return a function that gives so many batches and then stops as a killed job does."""
    left = iter(range(stop))

    def given(examples):
        if next(left, None) is None:
            raise InterruptedError
        return batch(examples)

    return given


def test_the_exact_size_of_lora_on_whisper_large_v2():
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    shape = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in LARGE.items()}
    config = WhisperConfig(d_model=1280, vocab_size=51865, num_mel_bins=80, **shape)
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
        recipe = LoRA(method="lora", dataset="x", steps=1, rank=32, target_modules=["q_proj", "v_proj"])
        trainable, total = recipe.prepare(model, 0).get_nb_trainable_parameters()
    assert (trainable, total) == (15_728_640, 1_559_033_600)


LARGE = {"layers": 32, "attention_heads": 20, "ffn_dim": 5120}


def test_a_translation_is_read_from_its_column(tmp_path, processor):
    sound(tmp_path / "clips/a.wav")
    (tmp_path / "clips/all.tsv").write_text("path\ttext\tenglish\na.wav\t你好\thello\n")
    entry = {"layout": "manifest", "path": tmp_path / "clips", "language": "zh", "translation": "english"}
    source, _ = gather(tmp_path / "work", **entry)
    speech.prepare(source / "train.parquet", tmp_path / "train.arrow", processor.feature_extractor)
    clips = speech.Clips(tmp_path, "train")
    assert clips.texts("translate") == ["hello"] and clips.texts("transcribe") == ["你好"]
