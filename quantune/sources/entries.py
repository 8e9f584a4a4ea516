"""Entries for files from outside: models, texts, speech; each identified by its content."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from quantune.core import credentials
from quantune.core.errors import listed, nearest
from quantune.core.recipe import MANY, Entry, Name, NonEmpty, Recipe, Seed
from quantune.sources import chat, row_templates
from quantune.sources.chat_templates import ChatTemplate


def _checked(pattern: str, expected: str) -> AfterValidator:
    """Return a check that a text matches a pattern; the error names the expected form."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"'{value}' is not {expected}")
        return value

    return AfterValidator(check)


OWNED = r"(?a:(?!.*(\.\.|--))[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95})"
REVISION = r"(?a:(?!.*(\.\.|//|@\{))[\w][\w./+@-]{0,254}(?<![./]))"
Repository = Annotated[str, _checked(OWNED, "a repository on the hub; give owner/name, such as facebook/opt-125m")]
Revision = Annotated[str, _checked(REVISION, "a branch, tag or commit; give one such as main, v1.0 or refs/pr/3")]
FileName = Annotated[
    str, _checked(r"[\w-][\w. -]{0,199}", "a file name; give one without folders, such as train.jsonl")
]
Url = Annotated[
    str,
    _checked(rf"(https?://[^/\s]|{credentials.VARIABLE})\S*", "a URL; give one that begins with https:// or http://"),
]
Language = Annotated[str, _checked(r"[a-z]{2,3}", "Whisper's code of a language; give one such as en or zh")]
UNSPACED = ("zh", "yue", "ja", "th", "lo", "my", "km", "bo")
"""Languages written without spaces: the character error rate is more meaningful than the word error rate."""
Sha256 = Annotated[str, _checked(r"[0-9a-f]{64}", "a SHA-256; give 64 digits 0-9, a-f, as `sha256sum` prints them")]


class External(Recipe):
    """Files from outside, given in exactly one of several ways; identified by their content, never by their path."""

    ways: ClassVar[tuple[str, ...]] = ("path", "hub")

    path: str | None = None
    """File or folder; may hold environment variables."""
    hub: Repository | None = None
    """Repository on the Hugging Face hub, `owner/name`; `sources.lock.json` pins its commit and files."""
    revision: Revision = "main"
    """Branch, tag or commit on the hub."""

    @model_validator(mode="after")
    def _one_way(self):
        given = [way for way in self.ways if getattr(self, way)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {listed(self.ways)}; found {' and '.join(given) or 'none'}")
        if "revision" in self.model_fields_set and not self.hub:
            raise ValueError("'revision' belongs to 'hub'; leave it out")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core, handler):
        """Return the schema, which also demands exactly one way."""
        schema = handler(core)
        handler.resolve_ref_schema(schema)["oneOf"] = [{"required": [way]} for way in cls.ways]
        return schema


class Model(External):
    """Where a model comes from."""

    settings: ClassVar[frozenset[str]] = frozenset({"path", "hub", "revision", "gguf_file", "licence"})
    neutral: ClassVar[frozenset[str]] = frozenset({"chat_template"})
    numbers: ClassVar[tuple[str, ...]] = ("parameters",)

    path: str | None = None
    """Folder in Hugging Face layout (config.json, tokenizer, safetensors or pytorch_model.bin), or a file *.gguf;
    may hold environment variables."""
    gguf_file: FileName | None = None
    """GGUF file in the folder or repository that is the model: `model.Q4_K_M.gguf`. It is dequantized."""
    chat_template: ChatTemplate | None = None
    """Chat template of the model: alpaca, chatml, plain, vicuna, or a template itself, in Jinja; null: the model's own.
    It stands in every checkpoint of the model."""
    licence: NonEmpty | None = None
    """Licence of the model, for model cards, as the hub writes it, such as apache-2.0; null: that of the repository."""

    @field_validator("gguf_file")
    @classmethod
    def _gguf(cls, name: str | None) -> str | None:
        if name is not None and not name.endswith(".gguf"):
            raise ValueError(f"'{name}' is no GGUF file; give one such as model.Q4_K_M.gguf")
        return name


class Download(Entry):
    """A file on the web."""

    url: Url
    """Its address: `https://...`. A password, token or signature is given by an environment variable, `${NAME}`, which
    is filled in when the file is downloaded."""
    sha256: Sha256
    """SHA-256 of its content, as `sha256sum` prints it."""


def _part(value: str | list[str] | float) -> str | list[str] | float:
    """Refuse a share that is none, and patterns of file names that lead out of the folder or match nothing."""
    if isinstance(value, float):
        if not 0 < value <= 1:
            raise ValueError(f"a share is above 0 and at most 1, found {value:g}")
        return value
    patterns = [value] if isinstance(value, str) else value
    if not patterns:
        raise ValueError("must not be empty; give a file name, a pattern such as train-*.jsonl, or a list of them")
    for pattern in patterns:
        parts = PurePosixPath(pattern).parts
        outside = not parts or parts[0] == "/" or ".." in parts
        if outside or any(len(part.encode()) > 255 or ("**" in part and part != "**") for part in parts):
            example = "give one such as train-*.jsonl"
            raise ValueError(f"'{pattern}' is not a file name or pattern below the folder; {example}")
    return value


Share = Annotated[float, WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": 1})]
Part = Annotated[str | list[str] | Share, AfterValidator(_part)]


class Dataset(External):
    """The fields that text and speech share: the origin of the files, and the splits."""

    ways: ClassVar[tuple[str, ...]] = ("path", "hub", "urls")
    settings: ClassVar[frozenset[str]] = frozenset({"path", "hub", "revision", "urls"})
    neutral: ClassVar[frozenset[str]] = frozenset({"sample"})
    track: ClassVar[Literal["text", "speech"]]

    path: str | None = None
    """File, or folder of files; may hold environment variables."""
    urls: dict[FileName, Download] = {}
    """File name -> where it is downloaded from, and its SHA-256."""
    splits: dict[Name, Part] = {}
    """Split -> its file names or patterns (`*.jsonl`) below `path`, in the repository or among `urls`; or split -> its
    share of the documents, drawn with `seed`; empty: all documents are the split "train"."""
    sample: dict[Name, Annotated[int, Field(strict=True, gt=0, le=MANY)]] = {}
    """Split -> number of its documents or clips, drawn with `seed`; the others are left out. Empty: all are kept."""
    seed: Seed = 0
    """Seed of the draws: of splits given as shares, and of `sample`."""

    def split_names(self) -> list[str]:
        """Return the names of the splits."""
        return list(self.splits) or ["train"]

    def shares(self) -> dict[str, float] | None:
        """Return split -> share, or None if splits are files."""
        numbers = {split: value for split, value in self.splits.items() if isinstance(value, float)}
        return numbers or None


class Text(Dataset):
    """Texts, divided into documents."""

    ways: ClassVar[tuple[str, ...]] = (*Dataset.ways, "texts")
    settings: ClassVar[frozenset[str]] = Dataset.settings | {"texts"}
    neutral: ClassVar[frozenset[str]] = Dataset.neutral | {"template", "chat", "columns"}
    track: ClassVar[Literal["text", "speech"]] = "text"
    of_rows: ClassVar[tuple[str, ...]] = ("column", "document")

    texts: list[NonEmpty] = []
    """The documents themselves, written here: one sentence, for example, to show what bad calibration does."""
    layout: Literal["text"] = "text"
    """Documents of text."""
    format: Literal["text", "json", "csv", "tsv", "parquet"] | None = None
    """Format of the files (json: also JSON lines); null: by their ending."""
    column: NonEmpty = "text"
    """Column that holds the text, for every format but plain text."""
    template: NonEmpty | None = None
    """Text of a document from several columns: `"{quote} — {author}"`; write {{ and }} for braces."""
    chat: Literal["alpaca", "prompt-completion", "sharegpt", "messages"] | None = None
    """Rows are conversations. alpaca: instruction, input and output, also history (earlier pairs) and system;
    prompt-completion: prompt and completion; sharegpt: `conversations`, a list of {from, value}; messages: `messages`,
    OpenAI's list of {role, content}. The model's chat template writes them. null: rows are texts."""
    columns: dict[NonEmpty, NonEmpty] = {}
    """With `chat`: field -> its column, where the names differ, such as {instruction: question, output: answer}."""
    document: Literal["file", "paragraph", "line"] = "paragraph"
    """The unit that is one document in plain text; paragraphs are separated by blank lines."""
    first: int | None = Field(default=None, gt=0, le=MANY)
    """Number of documents taken from the beginning of each file, the rest of which is neither read nor verified; null:
    all."""
    join: str | None = None
    """Join all documents of a file, empty ones too, by this text into one document before they are tokenized:
    "\\n\\n" is the protocol of the GPTQ paper for WikiText-2; null: they stay apart, and empty ones are dropped."""
    remove_leaks: Literal["none", "exact", "near"] = "none"
    """Drop held-out documents that repeat one of the split "train": exactly, or nearly (half of the three-word runs in
    common)."""

    @model_validator(mode="after")
    def _texts_are_documents(self):
        of_files = sorted({"format", *self.of_rows, "first", "join", "template", "chat"} & self.model_fields_set)
        if self.texts and of_files:
            raise ValueError(f"'{of_files[0]}' belongs to files, and 'texts' are the documents; leave it out")
        if self.texts and self.splits and not self.shares():
            raise ValueError(
                "splits of 'texts' are shares, such as {train: 0.9, test: 0.1}; without them all are 'train'"
            )
        return self

    @model_validator(mode="after")
    def _one_form_of_rows(self):
        given = self.model_fields_set
        for key, others in (("chat", {*self.of_rows, "join", "template"}), ("template", {*self.of_rows, "columns"})):
            if other := sorted(others & given if getattr(self, key) else ()):
                raise ValueError(f"'{other[0]}' does not go with '{key}'; leave one of the two out")
        if self.columns and not self.chat:
            raise ValueError("'columns' belongs to 'chat'; for texts give 'column' or 'template'")
        if self.template:
            row_templates.parts(self.template)
        known = [name for names in chat.FIELDS.get(self.chat, ()) for name in names]
        for name in self.columns:
            if name not in known:
                hint = f"fields of '{self.chat}': {listed(known)}{nearest(name, known)}"
                raise ValueError(f"columns: '{name}' is not a field; {hint}")
        return self


LAYOUT_SPLITS = {"common-voice": {"train": "train", "validation": "dev", "test": "test"}}


class Speech(Dataset):
    """Recordings with their transcripts, in one of the published layouts."""

    track: ClassVar[Literal["text", "speech"]] = "speech"

    settings: ClassVar[frozenset[str]] = Dataset.settings | {"absolute_paths"}

    layout: Literal["common-voice", "ljspeech", "manifest", "parquet"]
    """common-voice: a release of Mozilla Common Voice, `cv-corpus-*.tar.gz` or its unpacked folder; ljspeech:
    metadata.csv and wavs/; manifest: TSV, CSV or JSON lines that name audio files beside them, whole or, with columns
    `offset` and `duration` in seconds, a segment of each; parquet: an audio column, as on the hub."""
    locale: NonEmpty | None = None
    """Locale of a Common Voice release, such as zh-CN; null: the only one."""
    language: Language | None = None
    """Whisper's code of the language spoken, such as en or zh; null: that of the locale."""
    column: NonEmpty | None = None
    """Column with the transcript; null: `sentence` in Common Voice, else `text`."""
    audio: NonEmpty | None = None
    """Column with the audio, or with its path; null: `path` in Common Voice and manifests, `audio` in Parquet."""
    absolute_paths: bool = False
    """Whether tables may name audio files outside the dataset's folder, also through links; only for tables of your own
    in `path`."""
    translation: NonEmpty | None = None
    """Column with an English translation, needed for `task: translate`."""
    splits: dict[Name, Part] = {}
    """Split -> its TSV (`dev`), manifests or Parquet files; or split -> its share of the clips, drawn with `seed`.
    Empty: train, validation (dev) and test of a Common Voice release; else all clips are the split "train"."""
    min_seconds: float = Field(default=0.1, ge=0, le=86_400)
    """Shorter clips are dropped and counted."""
    max_seconds: float = Field(default=30, gt=0, le=86_400)
    """Longer clips are dropped and counted; so are those longer than the model's window."""
    max_broken: float = Field(default=0.01, ge=0, le=1)
    """Share of clips that may be missing or unreadable: they are listed and left out; more are an error."""

    @model_validator(mode="after")
    def _fits_layout(self):
        if self.layout == "common-voice" and self.shares():
            raise ValueError("splits of a Common Voice release are its TSV files, such as {train: train, test: test}")
        if self.locale and self.layout != "common-voice":
            raise ValueError("'locale' belongs to 'layout: common-voice'; give 'language'")
        if not self.language and self.layout != "common-voice":
            raise ValueError("'language' is missing; give Whisper's code of the language spoken, such as en or zh")
        if self.hub and self.layout != "parquet":
            raise ValueError(f"'layout: {self.layout}' is read from 'path'; for the hub it is 'layout: parquet'")
        if self.absolute_paths and not self.path:
            raise ValueError("'absolute_paths' belongs to 'path'; a downloaded table names no files of this machine")
        if self.min_seconds >= self.max_seconds:
            raise ValueError(f"min_seconds {self.min_seconds:g} must be below max_seconds {self.max_seconds:g}")
        return self

    def chosen_splits(self) -> dict[str, str | list[str] | float]:
        """Return the splits, or those of the layout."""
        return self.splits or LAYOUT_SPLITS.get(self.layout, {})

    def split_names(self) -> list[str]:
        """Return the names of the splits."""
        return list(self.chosen_splits()) or ["train"]


def _with_layout(raw: Any) -> Any:
    """Return the raw dataset with the layout "text" if it names none."""
    return {"layout": "text", **raw} if isinstance(raw, dict) else raw


AnyDataset = Annotated[Text | Speech, Field(discriminator="layout"), BeforeValidator(_with_layout)]
