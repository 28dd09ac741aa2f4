"""Text for the examples that every machine has: the docstrings of Python's standard library."""

import importlib
import inspect
from collections.abc import Sequence

MODULES = ["bisect", "calendar", "collections", "contextlib", "csv", "datetime", "difflib", "fnmatch", "functools"]
MODULES += ["glob", "gzip", "hashlib", "heapq", "html", "io", "itertools", "json", "logging", "math", "os", "pathlib"]
MODULES += ["pickle", "platform", "pprint", "queue", "random", "re", "secrets", "shlex", "shutil", "signal", "socket"]
MODULES += ["sqlite3", "statistics", "string", "struct", "subprocess", "tempfile", "textwrap", "threading", "time"]
MODULES += ["traceback", "urllib.parse", "uuid", "warnings", "weakref", "xml.etree.ElementTree", "zipfile"]
LONGEST = 120
"""Words of a docstring to keep."""


def passages(modules: Sequence[str] = MODULES) -> dict[str, str]:
    """Full names and docstrings of the modules' documented public functions and classes; each text once."""
    texts: dict[str, str] = {}
    for module_name in modules:
        module = importlib.import_module(module_name)
        for name, member in sorted(vars(module).items()):
            if name.startswith("_") or not (inspect.isroutine(member) or inspect.isclass(member)):
                continue
            text = " ".join((inspect.getdoc(member) or "").split()[:LONGEST])
            if len(text.split()) >= 5 and text not in texts.values():
                texts[f"{module_name}.{name}"] = text
    return texts
