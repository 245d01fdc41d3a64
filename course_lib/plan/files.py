"""Models and machines in files: YAML, TOML or JSON. No torch here."""

import importlib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from course_lib.arguments import one_of
from course_lib.plan.clusters import transformer
from course_lib.plan.facts import Machine, Model, made

__all__ = ["read"]


def read(path: str | Path, kind: str) -> Model | Machine:
    """Read a model or a machine from a file, by the ending of its name.

    .json and .toml need nothing; .yaml and .yml need PyYAML, which comes with JupyterLab. A model is the
    fields of `Model`, or a table "transformer" with what `transformer` takes.

    Args:
        kind: "model" or "machine".

    Errors: ValueError for what is no model or machine; OSError where there is no file.
    """
    one_of("kind", kind, ("model", "machine"))
    if not isinstance(path, str | Path):
        raise TypeError(f"path={path!r}: it must be the name of a file.")
    if Path(path).suffix not in (".json", ".toml", ".yaml", ".yml"):
        raise ValueError(f"{path}: the name of a {kind} ends in .yaml, .yml, .toml or .json.")
    text = Path(path).read_text(encoding="utf-8")
    try:
        data = _parsed(text, Path(path).suffix)
    except ValueError as error:  # of each of the three readers, whose words may take lines
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}.") from None
    if not isinstance(data, Mapping):
        raise ValueError(f"{path} holds no table of names and values.")
    try:
        if kind == "machine":
            return made(Machine, data)
        return transformer(**data["transformer"]) if "transformer" in data else made(Model, data)
    except TypeError as error:  # a value of another type, or an argument that `transformer` does not know
        raise ValueError(f"{path}: {str(error).rstrip('.')}.") from None


def _parsed(text: str, ending: str) -> Any:
    if ending == ".json":
        return json.loads(text)
    if ending == ".toml":
        return tomllib.loads(text)
    try:
        yaml = importlib.import_module("yaml")  # JupyterLab's own need: not one that this course declares
    except ImportError:
        raise ValueError("PyYAML is not installed; write it as .toml or .json") from None

    class Loader(yaml.SafeLoader):
        """Reads 4e9 as a number, as TOML and JSON do, and not as text."""

    number = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
