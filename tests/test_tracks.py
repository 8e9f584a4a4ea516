"""Text and speech in one configuration: what does not fit together is said before anything runs."""

import pytest

from quantune.core.errors import ConfigError
from quantune.planning import load
from quantune.planning.plan import Plan
from tests.voices import ROOT, WHISPER

TALKS = {"layout": "common-voice", "path": str(ROOT / "assets/speech/cv-corpus-saltmere-1.0")}
AWQ = {"method": "awq", "bits": 4, "group_size": 32, "split": "train"}


@pytest.fixture
def both(raw) -> dict:
    """A configuration with a text and a speech model, each with data, a training and an evaluation."""
    raw["models"]["whisper"] = {"path": str(WHISPER)}
    raw["datasets"]["talks"] = dict(TALKS)
    raw["finetunings"]["lora-talks"] = {"method": "lora", "dataset": "talks", "steps": 2}
    raw["quantizations"]["awq-talks"] = AWQ | {"dataset": "talks"}
    raw["quantizations"]["awq-news"] = AWQ | {"dataset": "news"}
    raw["evaluations"]["talks"] = {"kind": "transcription", "dataset": "talks"}
    raw["variants"] = ["opt+{rtn-w4,lora,awq-news}", "whisper+{rtn-w4,lora-talks,awq-talks}"]
    return raw


def problems(raw: dict) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load.load(raw, "c")
    return [line.removeprefix("c: ") for line in str(caught.value).splitlines()]


def test_each_model_has_the_evaluations_of_its_track(both):
    loaded = load.load(both)
    assert loaded.evaluations_of("whisper") == ["talks"]
    assert loaded.evaluations_of("opt") == ["harbour", "news", "prompts"]
    stages = {artefact.stage for artefact in Plan(loaded).report().parents["evaluations"]}
    assert stages == {"evaluate/transcription", "evaluate/perplexity", "evaluate/generation"}
    with pytest.raises(ConfigError, match=r"evaluations.talks: 'transcription' is a speech evaluation, and the model"):
        Plan(loaded).evaluation("opt", "talks")
    with pytest.raises(ConfigError, match=r"'news' is text, and the model 'whisper' is a speech model; speech"):
        Plan(loaded).prepared("news", "whisper")


@pytest.mark.parametrize(
    ("variant", "problem"),
    [
        ("whisper+lora", "finetunings.lora.dataset: 'harbour' is text, and the model 'whisper' is a speech model"),
        ("opt+lora-talks", "finetunings.lora-talks.dataset: 'talks' is speech, and the model 'opt' is a text model"),
        ("whisper+awq-news", "quantizations.awq-news.dataset: 'news' is text, and the model 'whisper' is a speech"),
        ("opt+awq-talks", "quantizations.awq-talks.dataset: 'talks' is speech, and the model 'opt' is a text model"),
    ],
)
def test_data_of_the_other_track_is_refused(both, variant, problem):
    both["variants"].append(variant)
    (found,) = problems(both)
    assert found.startswith(problem) and "datasets: " in found


@pytest.mark.parametrize(
    ("kind", "dataset", "problem"),
    [
        ("transcription", "news", "evaluations.odd.dataset: 'news' is text; 'transcription' needs speech"),
        ("perplexity", "talks", "evaluations.odd.dataset: 'talks' is speech; 'perplexity' needs text"),
    ],
)
def test_an_evaluation_reads_data_of_its_track(both, kind, dataset, problem):
    both["evaluations"]["odd"] = {"kind": kind, "dataset": dataset, "split": "test"}
    assert problems(both) == [problem]


def test_an_evaluation_of_a_track_that_no_model_has_is_refused(raw):
    raw["datasets"]["talks"] = dict(TALKS)
    raw["evaluations"]["talks"] = {"kind": "transcription", "dataset": "talks"}
    assert problems(raw) == [
        "evaluations.talks: 'transcription' is a speech evaluation, and none of the models is a speech model: opt"
    ]


LJSPEECH = {"layout": "ljspeech", "path": ".", "language": "en"}


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"layout": "manifest", "hub": "a/b", "language": "en"}, "'layout: manifest' is read from 'path'; for the hub"),
        ({"layout": "common-voice", "hub": "a/b"}, "'layout: common-voice' is read from 'path'; for the hub it is"),
        ({"layout": "parquet", "hub": "a/b"}, "'language' is missing; give Whisper's code of the language spoken"),
        (LJSPEECH | {"language": None}, "'language' is missing; give Whisper's code"),
        (LJSPEECH | {"locale": "en"}, "'locale' belongs to 'layout: common-voice'; give 'language'"),
        (LJSPEECH | {"min_seconds": 9, "max_seconds": 9}, "min_seconds 9 must be below max_seconds 9"),
        (TALKS | {"splits": {"train": 0.9, "test": 0.1}}, "splits of a Common Voice release are its TSV files"),
    ],
)
def test_a_collection_that_cannot_be_read_is_refused(both, entry, problem):
    both["datasets"]["odd"] = entry
    (found,) = problems(both)
    assert found.startswith(f"datasets.odd: {problem}")


@pytest.mark.parametrize(
    ("entry", "where", "problem"),
    [
        (TALKS | {"language": "English"}, "language", "'English' is not Whisper's code of a language; give one such"),
        (TALKS | {"layout": "comon-voice"}, "layout", "'comon-voice' is not known; allowed: common-voice, ljspeech"),
        (TALKS | {"document": "line"}, "document", "unknown key; allowed: path, hub, revision"),
        ({"path": "x.txt", "locale": "en"}, "locale", "unknown key; did you mean 'column'?; allowed: path, hub"),
    ],
)
def test_a_wrong_key_is_named(both, entry, where, problem):
    both["datasets"]["odd"] = entry
    (found,) = problems(both)
    assert found.startswith(f"datasets.odd.{where}: {problem.split(';')[0]}") and problem.split("; ")[-1] in found


@pytest.mark.parametrize("section", ["evaluations", "finetunings"])
def test_a_translation_needs_its_column(both, section):
    both[section]["talks" if section == "evaluations" else "lora-talks"]["task"] = "translate"
    (found,) = problems(both)
    name = "talks" if section == "evaluations" else "lora-talks"
    assert (
        found == f"{section}.{name}.task: 'translate' needs 'translation' of the dataset 'talks': the column to write"
    )


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"path": "nowhere.mp3", "language": "en"}, ".path: 'nowhere.mp3' does not exist"),
        ({"path": str(ROOT / "assets"), "language": "en"}, f".path: '{ROOT}/assets' is a folder; give an audio file"),
        ({"path": "x.mp3"}, ".language: is missing; Whisper's code of the language spoken, such as en or zh."),
    ],
)
def test_a_recording_that_cannot_be_transcribed(both, entry, problem):
    both["recordings"] = {"talk": entry}
    assert problems(both) == [f"recordings.talk{problem}"]


def test_a_recording_needs_a_speech_model(both):
    both["recordings"] = {"talk": {"path": __file__, "language": "en"}}
    loaded = load.load(both)
    assert [variant for variant, _ in loaded.transcribed] == [
        "whisper+rtn-w4",
        "whisper+lora-talks",
        "whisper+awq-talks",
    ]
    with pytest.raises(ConfigError, match=r"recordings.talk: 'opt' cannot transcribe; 'opt' is a text model"):
        Plan(loaded).transcript("opt", "talk")
    with pytest.raises(ConfigError, match=r"'tak' is not one of the recordings: talk; did you mean 'talk'"):
        Plan(loaded).transcript("whisper", "tak")
