"""Configurations that are wrong, by kind: each ends in one line with the key, the value and what to type instead."""

import copy
import datetime
import json
import math
import shutil

import pytest
import yaml

from quantune.core.errors import ConfigError
from quantune.core.recipe import LARGEST_SEED
from quantune.finetunings.lora import LoRA
from quantune.planning import documents, load
from quantune.planning.config import SECTIONS
from quantune.planning.plan import Plan
from quantune.sources.lock import Lock
from tests.workflow import Folder


@pytest.fixture
def whole(raw, root, tmp_path) -> dict:
    """A valid configuration with an entry of every kind."""
    calibrated = {"dataset": "harbour", "group_size": 32, "length": 16}
    raw["lock"] = str(tmp_path / "sources.lock.json")
    raw["models"]["whisper"] = {"path": str(root / "assets/models/whisper-3m")}
    raw["datasets"]["web"] = {"urls": {"a.txt": {"url": "https://h.org/a", "sha256": "0" * 64}}}
    raw["datasets"]["radio"] = {
        "layout": "common-voice",
        "path": str(root / "assets/speech/cv-corpus-saltmere-1.0"),
        "splits": {"train": "train", "test": "test"},
    }
    raw["quantizations"]["gptq"] = {"method": "gptq", **calibrated}
    raw["quantizations"]["awq"] = {
        "method": "awq",
        "mappings": [{"before": "fc1", "layers": ["fc2"]}],
        **calibrated,
    }
    raw["quantizations"]["int8"] = {"method": "int8"}
    raw["finetunings"]["lora"]["target_modules"] = ["q_proj"]
    raw["evaluations"]["radio"] = {"kind": "transcription", "dataset": "radio"}
    raw["benchmark"] = {"batch_sizes": [1], "prompt_lengths": [8], "new_tokens": 4}
    raw["expected"] = [{"source": "x", "evaluation": "harbour", "values": {"opt": 3.0}}]
    raw["recordings"] = {"talk": {"path": str(root / "assets/probe/speech.flac"), "language": "en"}}
    return raw


def put(raw: dict, path: str, value) -> dict:
    """Set the value at a path such as `finetunings.lora.rank`; `*` in names stands for a dot."""
    *parents, last = [int(part) if part.isdigit() else part.replace("*", ".") for part in path.split(".")]
    place = raw
    for part in parents:
        place = place[part]
    place[last] = value
    return raw


def problem(raw: dict) -> str:
    """Return the only line of the error."""
    with pytest.raises(ConfigError) as caught:
        load.load(raw, "my.yaml")
    (line,) = str(caught.value).split("\n")
    assert line.startswith("my.yaml: ")
    return line.removeprefix("my.yaml: ")


INFINITE, LORA, WEB = "is not a finite number", "finetunings.lora.", "datasets.web.urls.a*txt"
CASES = [
    # numbers
    (LORA + "learning_rate", math.inf, f"inf {INFINITE}"),
    (LORA + "learning_rate", math.nan, f"nan {INFINITE}"),
    (LORA + "learning_rate", "1e999", "should be a finite number, found '1e999'"),
    (LORA + "learning_rate", 1.5, "less than or equal to 1, found 1.5"),
    (LORA + "steps", 10**12, "less than or equal to 1000000000, found 1000000000000"),
    (LORA + "steps", 10**5000, "the number is too large"),
    (LORA + "rank", True, "'rank' is a number, found true"),
    (LORA + "rank", 129, "129 is more than the width of the layers; allowed: up to 128"),
    (LORA + "rank", 10**6, "less than or equal to 65536"),
    ("datasets.news.splits", {"train": math.nan, "test": 0.5}, f"train: nan {INFINITE}"),
    ("datasets.news.splits", {"train": math.inf}, f"train: inf {INFINITE}"),
    ("datasets.news.splits", {"train": -0.5}, "a share is above 0 and at most 1, found -0.5"),
    ("datasets.radio.max_seconds", math.inf, f"inf {INFINITE}"),
    ("expected.0.values.opt", math.inf, f"inf {INFINITE}"),
    ("seed", -1, "greater than or equal to 0, found -1"),
    ("seed", 2**32, f"less than or equal to {LARGEST_SEED}, found {2**32}"),
    ("datasets.news.seed", 2**70, "the number is too large"),
    ("threads", 10**6, "less than or equal to 4096"),
    ("threads", False, "'threads' is a number, found false"),
    ("benchmark.batch_sizes", [1, 2**20], "less than or equal to 65536"),
    # positions
    (
        "evaluations.prompts.max_new_tokens",
        1024,
        "1024 after a prompt of 1 exceeds the 1024 positions of 'opt'; allowed",
    ),
    ("evaluations.prompts.prompts", ["a b c " * 400], "40 after a prompt of 1202 exceeds the 1024 positions of 'opt'"),
    ("benchmark.new_tokens", 1020, "the longest makes 1028 tokens with 'new_tokens'"),
    # layers
    (LORA + "target_modules", [], "must not be empty"),
    (LORA + "target_modules", [""], "must not be empty"),
    (
        LORA + "target_modules",
        ["q_prj"],
        "'q_prj' is not a linear layer of the model; allowed: all-linear, or a list of",
    ),
    (LORA + "target_modules", ["q_proj", "embed_tokens"], "'embed_tokens' is not a linear layer"),
    # empty
    ("datasets.harbour.splits.test", [], "must not be empty; give a file name"),
    ("datasets.harbour.splits.test", "", "'' is not a file name or pattern below the folder"),
    ("datasets.harbour.column", "", "must not be empty"),
    ("variants", [""], "must not be empty"),
    ("variants", ["opt", "opt+"], "'' is not a step"),
    ("evaluations.prompts.prompts", ["The", ""], "must not be empty"),
    ("quantizations.awq.mappings", [{}], "before: is missing"),
    # texts
    ("title", "a\ud800b", r"'a\ud800b' holds a character that no text has"),
    ("title", "a\0b", r"'a\x00b' holds a character that no text has"),
    ("title", datetime.date(2024, 1, 1), "'2024-01-01' is neither text nor a number; put quotes around it"),
    ("evaluations.prompts.prompts", ["\udfff"], "holds a character"),
    ("lock", "a\0b", "holds a character"),
    ("models.opt.path", "a\0b", "holds a character"),
    ("models.o\ud800", {"path": "x"}, "holds a character"),
    ("models", {1: {"path": "x"}}, "the key 1 is not text; put quotes around it"),
    ("title", ["a\nb"], r"found ['a\nb']"),
    # paths
    ("work", "", "cannot be the work folder"),
    ("work", "..", "cannot be the work folder; give one without spaces, braces and '..', such as 'work'"),
    ("work", "../../results", "cannot be the work folder"),
    ("work", "/", "cannot be the work folder"),
    ("work", "my work", "cannot be the work folder"),
    ("work", "work{0}", "cannot be the work folder"),
    ("work", "work/", "write 'work/' as 'work'"),
    ("work", "./work", "write './work' as 'work'"),
    ("work", "/dev/null/work", "'/dev/null' is not a folder, so '/dev/null/work' cannot be one"),
    ("work", "w" * 300, "the path is too long"),
    ("lock", "/", "'/' cannot be read (Is a directory); name a file"),
    ("models.opt.path", "/tmp/" + "x" * 300, "models.opt.path: "),
    ("datasets.harbour.splits.test", "/etc/*.conf", "'/etc/*.conf' is not a file name or pattern below the folder"),
    ("datasets.harbour.splits.test", ["../*.txt"], "'../*.txt' is not a file name or pattern below the folder"),
    ("datasets.harbour.splits.test", "a**", "'a**' is not a file name or pattern"),
    ("datasets.harbour.splits.test", ".", "'.' is not a file name or pattern"),
    ("datasets.harbour.splits.test", "x" * 300, "is not a file name or pattern"),
    # names and addresses
    ("variants", ["opt+lora@4294967296"], "the seed of 'lora@4294967296' is too large; allowed: 0 to 4294967295"),
    ("variants", [f"opt+lora@{'9' * 5000}"], "is not a step; a step is a name, or name@seed"),
    (
        "datasets.web",
        {"hub": "a/b", "revision": ".."},
        "revision: '..' is not a branch, tag or commit; give one such as",
    ),
    ("datasets.web", {"hub": "a/b", "revision": "main/../../x"}, "'main/../../x' is not a branch"),
    ("datasets.web", {"hub": "a/b", "revision": "main?x=1"}, "is not a branch"),
    ("datasets.web", {"hub": "a/.."}, "'a/..' is not a repository"),
    ("datasets.web", {"hub": "a/b--c"}, "'a/b--c' is not a repository"),
    (
        WEB,
        {"url": "file:///etc/passwd", "sha256": "0" * 64},
        "is not a URL; give one that begins with https:// or http://",
    ),
    (WEB, {"url": "https://"}, "is not a URL"),
]


@pytest.mark.parametrize(
    ("path", "value", "part"), CASES, ids=[f"{number}-{path}" for number, (path, _, _) in enumerate(CASES)]
)
def test_a_wrong_value_is_one_line(whole, path, value, part):
    raw = put(whole, path, value)
    with pytest.raises(ConfigError) as caught:
        load.load(raw, "my.yaml")
    lines = str(caught.value).split("\n")
    (found,) = [line for line in lines if part in line]
    section = path.replace("*", ".").rpartition(".")[0]
    assert found.startswith(f"my.yaml: {section or ('the configuration' if 'is a number' in part else path)}"), found
    assert all(line.startswith("my.yaml: ") for line in lines) and len(lines) <= 3


VALUES = [
    None,
    True,
    3,
    -1,
    2**70,
    math.nan,
    1e300,
    "",
    "x",
    "a\0",
    "..",
    "x" * 5000,
    "\n",
    [],
    [[]],
    [None],
    {},
    {"a": {}},
]


def places(value, path: tuple = ()):
    """Yield the path of every value of a configuration."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def all_places(raw: dict) -> list[tuple]:
    """Return the path of every value, and of every field that could be given."""
    found = set(places(raw))
    for section, (tag, recipes) in SECTIONS.items():
        for name, entry in raw[section].items():
            fields = [recipe.model_fields for recipe in recipes if tag is None or _is(recipe, tag, entry)]
            found |= {(section, name, field) for field in fields[0]}
    return sorted(found, key=str)


def _is(recipe, tag: str, entry: dict) -> bool:
    return entry.get(tag, "text") in recipe.model_fields[tag].annotation.__args__


@pytest.mark.parametrize("value", VALUES, ids=[f"{value!a:.12}" for value in VALUES])
def test_no_value_at_any_key_ends_in_a_traceback(whole, value):
    """Every line of every error begins with the configuration's name, and shows no Python type."""
    load.load(whole)
    for path in all_places(whole):
        raw = copy.deepcopy(whole)
        place = raw
        for key in path[:-1]:
            place = place[key]
        if path:
            place[path[-1]] = value
        try:
            load.load(raw if path else value, "my.yaml")
        except ConfigError as error:
            lines = str(error).split("\n")
            assert [line for line in lines if not line.startswith("my.yaml: ") or "pydantic" in line] == [], path


def numbers(schema, path: str = ""):
    """Yield every part of a JSON schema that describes a number, with its path."""
    if isinstance(schema, dict):
        kinds = schema.get("type")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if {"integer", "number"} & {kind for kind in kinds if isinstance(kind, str)} and "enum" not in schema:
            yield path, schema
        for key, part in schema.items():
            yield from numbers(part, f"{path}/{key}")
    elif isinstance(schema, list):
        for index, part in enumerate(schema):
            yield from numbers(part, f"{path}/{index}")


def unbounded(schema) -> list[str]:
    """Return the paths of numbers without a finite lower and a finite upper bound."""
    bounds = (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum"))
    return [
        path
        for path, part in numbers(schema)
        if not all(any(math.isfinite(part.get(key, math.inf)) for key in keys) for keys in bounds)
        and "const" not in part
    ]


def test_every_number_of_the_schema_has_two_bounds(root):
    schema = load.schema()
    assert len(list(numbers(schema))) > 40
    assert unbounded(schema) == [], "give the new fields bounds that no honest user meets"
    assert unbounded({"a": {"type": "integer", "minimum": 0}, "b": {"type": "number", "maximum": 1}}) == ["/a", "/b"]


HEAD = "models: {opt: {path: x}}\n"
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)
MAPPINGS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{level}: &a{level} {{{', '.join(f'{key}: *a{level - 1}' for key in 'bcdefghij')}}}\n" for level in range(1, 12)
)
FILES = [
    ("title: a\nseed: 1\ntitle: b\n", "title: the key is given twice, in line 1 and in line 3; take one out"),
    ("models:\n  opt: {path: a, path: b}\n", "models.opt.path: the key is given twice, in line 2 and in line 2; take"),
    ("a: [{x: 1}, {x: 1, y: 2, x: 2}]", "a.1.x: the key is given twice"),
    ('a: 1\n"a": 2\n', "a: the key is given twice"),
    ('{"a": 1, "b": {"c": 1, "c": 2}}', "c: the key is given twice; take one out"),
    (LAUGHS, "the aliases stand for more than 100,000 values; write fewer"),
    (MAPPINGS, "the aliases stand for more than 100,000 values; write fewer"),
    ("a: &a [*a]\n", "nested more than 20 levels deep"),
    ("a: &a {b: *a}\n", "nested more than 20 levels deep"),
    ("a: " + "[" * 30 + "]" * 30, "nested more than 20 levels deep"),
    ("a: " + "[" * 20_000, "nested more than 20 levels deep"),
    ('{"a": ' * 20_000, "nested more than 20 levels deep"),
    ("a: " + "1" * 5000, "cannot be read as a configuration: Exceeds the limit (4300 digits)"),
    ("a: 2024-13-45", "cannot be read as a configuration: month must be in 1..12"),
    ("a: !!timestamp x", "cannot be read as a configuration"),
    ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
    ("? [a, b]\n: 1\n", "found unhashable key in line 1, column 3"),
    ("a: b\n\tc: d", "cannot be read as a configuration: found character '\\t' that cannot start any token in line 2"),
    ("a: [1, 2\nb: 3", "cannot be read as a configuration"),
    ("\0", "cannot be read as a configuration: unacceptable character"),
    (b"title: \xff\xfe", "cannot be read as a configuration: 'utf-8' codec can't decode byte 0xff"),
    ("- a\n- b\n", "the configuration: keys and values expected, such as 'name: ...', found ['a', 'b']"),
    ("text", "the configuration: keys and values expected"),
]


@pytest.mark.parametrize(("content", "part"), FILES, ids=[str(content[:15]) for content, _ in FILES])
def test_a_wrong_file_is_one_line(tmp_path, content, part):
    path = tmp_path / "my.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load.read(path)
    (line,) = str(caught.value).split("\n")
    assert str(path) in line and part in line


@pytest.mark.parametrize("name", ["", "missing.yaml", "x" * 300])
def test_a_configuration_that_cannot_be_opened(tmp_path, name):
    with pytest.raises(ConfigError, match=r"cannot be read as a configuration: \[Errno"):
        load.read(tmp_path / name)


def test_aliases_and_merges_of_ordinary_size_are_read(tmp_path):
    text = "base: &base {a: 1, b: 2}\nother:\n  <<: *base\n  b: 3\nsame: *base\n"
    (tmp_path / "my.yaml").write_text(text)
    assert documents.read(tmp_path / "my.yaml") == yaml.safe_load(text)
    (tmp_path / "my.json").write_text(json.dumps({"title": "\U0001f600"}))
    assert documents.read(tmp_path / "my.json") == {"title": "\U0001f600"}


def test_names_too_long_for_a_file_are_refused_before_any_job(raw):
    step = raw["finetunings"].pop("lora")
    for letters in ("a", "b", "c"):
        raw["finetunings"][letters * 90] = step
    raw["variants"] = [f"opt+{'a' * 90}+merge+{'b' * 90}"]
    assert Plan(load.load(raw)).report()
    raw["variants"] = [f"opt+{'a' * 90}+merge+{'b' * 90}+merge+{'c' * 90}"]
    with pytest.raises(ConfigError) as caught:
        Plan(load.load(raw)).report()
    assert "needs a file name of 310 bytes, and file systems allow 255; shorten the names" in str(caught.value)
    assert "at most 100 characters" in problem(put(raw, "datasets", {"d" * 101: raw["datasets"]["news"]}))


def test_unknown_targets_of_an_unknown_architecture_are_refused_by_the_job():
    class Part:
        in_features = 8

    class Model:
        def named_modules(self):
            return [("layers.0.mixer.in_proj", Part()), ("layers.0.norm", object())]

    recipe = LoRA(method="lora", dataset="x", steps=1, target_modules=["mixer.in_proj", "q_proj"])
    assert recipe.unsuitable({"model_type": "mamba"}) is None
    with pytest.raises(
        Exception, match=r"^target_modules: 'q_proj' is not a linear layer of the model; allowed: all-lin"
    ):
        recipe.prepare(Model(), 0)


def test_a_lock_file_that_cannot_be_written(tmp_path):
    with pytest.raises(ConfigError, match=r"lock: '.*' cannot be written \(No such file or directory\); name another"):
        Lock(tmp_path / "missing/lock.json")._add("models", "a/b@main", {})


def test_snakemake_refuses_a_key_that_is_given_twice(tmp_path, raw):
    folder = Folder(tmp_path / "project", raw)
    with (folder.path / "config.yaml").open("a") as file:
        file.write("seed: 1\nseed: 2\n")
    printed = folder.run("--dry-run", check=False)
    assert "config.yaml: seed: the key is given twice, in line " in printed and "Traceback" not in printed
    shutil.move(folder.path / "config.yaml", folder.path / "other.yaml")
    assert "seed: the key is given twice" in folder.run("--dry-run", "--configfile", "other.yaml", check=False)


def test_braces_in_paths_of_sources_and_of_the_project(tmp_path, root):
    """Snakemake formats strings: braces would be wildcards."""
    folder = Folder(tmp_path / "project {a}", {})
    shutil.copytree(root / "assets/models/opt-2m", folder.path / "data {b}/opt{c}")
    (folder.path / "data {b}/train{0}.txt").write_text("First.\n\nSecond.\n")
    folder.write(
        {
            "models": {"opt": {"path": "data {b}/opt{c}"}},
            "datasets": {"news": {"path": "data {b}", "splits": {"train": "train{0}.txt"}}},
            "variants": ["opt"],
        }
    )
    targets = ("work/checkpoints/opt", "work/sources/news")
    folder.run(*targets, "--cores", "1")
    assert folder.planned(*targets) == set()
    (folder.path / "data {b}/train{0}.txt").write_text("Third.\n")
    assert folder.planned(*targets) == {"sources/news"}
