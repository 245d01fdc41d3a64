"""A rank imports what the notebook has imported, from the same file, wherever the notebook has gone since
then (%cd).
"""

import importlib.abc
import importlib.util
import os
import sys

__all__ = ["of_the_notebook", "as_in_the_notebook"]


def of_the_notebook() -> dict:
    """The notebook's sys.path, and by name the files of modules that are not found on it any more.

    '' and other relative entries mean another folder after the working directory has changed, and an entry
    can be taken away again.
    """
    here = {os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)}
    elsewhere = {}
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if (
            "." in name
            or spec is None
            or spec.name != name
            or not spec.has_location
            or not isinstance(spec.origin, str)
        ):
            continue
        folder = os.path.dirname(
            spec.origin if spec.submodule_search_locations is None else os.path.dirname(spec.origin)
        )
        if folder not in here and os.path.isfile(spec.origin):
            elsewhere[name] = spec.origin
    return {"path": list(sys.path), "elsewhere": elsewhere}


def as_in_the_notebook(told: dict) -> None:
    """Make this rank import as `of_the_notebook` has told."""
    sys.path[:] = told["path"]
    if told["elsewhere"]:
        sys.meta_path.insert(0, _SameFile(told["elsewhere"]))


class _SameFile(importlib.abc.MetaPathFinder):
    def __init__(self, files: dict[str, str]):
        self._files = files

    def find_spec(self, name, path=None, target=None):
        return (
            importlib.util.spec_from_file_location(name, self._files[name]) if name in self._files else None
        )
