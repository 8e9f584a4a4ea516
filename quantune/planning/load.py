"""Read a configuration file and check it; write the JSON schema for editors."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quantune.core.errors import ConfigError
from quantune.planning import checks, documents
from quantune.planning.config import SECTIONS, Config
from quantune.planning.explain import problem_lines


def load(raw: dict[str, Any], name: str = "config") -> Config:
    """Return the checked configuration.

    Args:
        raw: the parsed YAML.
        name: name of the configuration in error texts, such as the file's path.

    Raises:
        ConfigError: with one line for each problem: the key's path, the problem, the allowed values.
    """
    problems = documents.unplain(raw)
    if not problems:
        try:
            config = Config.model_validate(raw)
            problems = checks.problems(config)
        except ValidationError as error:
            problems = problem_lines(error, raw, SECTIONS, Config)
    if problems:
        lines = (problem.replace("\n", "\\n").replace("\r", "\\r") for problem in problems)
        raise ConfigError("\n".join(f"{name}: {line}" for line in dict.fromkeys(lines)))
    return config


def read(path: str | Path) -> Config:
    """Return the checked configuration of a file; raises ConfigError as `load` does, or if the file cannot be read."""
    return load(documents.read(path) or {}, str(path))


def schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration, for editors."""
    content = Config.model_json_schema()
    for section in content["properties"].values():
        if "patternProperties" in section:
            section["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **content}


def write_schema(path: Path) -> None:
    """Write the JSON schema (`make schema`)."""
    path.write_text(json.dumps(schema(), indent=1, ensure_ascii=False) + "\n")
