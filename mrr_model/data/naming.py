"""What a source's name says: a path, with or without a split after it, or a name that a library or the hub knows."""

from pathlib import Path

ENDINGS = (".json", ".jsonl", ".tsv", ".csv", ".txt", ".gz", ".parquet", ".arrow", ".yaml", ".run", ".qrels")
"""No name of a dataset ends so."""


def split_name(source: str) -> tuple[str, str]:
    """A source's name and split: ``NAME#SPLIT``, or ``NAME`` and an empty split.

    What exists under the longest name wins, so that a folder may have a ``#`` in its own.

    >>> split_name("BeIR/scifact#test"), split_name("BeIR/scifact")
    (('BeIR/scifact', 'test'), ('BeIR/scifact', ''))
    """
    parts = source.split("#")
    for count in range(len(parts), 1, -1):
        name = "#".join(parts[:count])
        if Path(name).expanduser().exists():
            return name, "#".join(parts[count:])
    return parts[0], "#".join(parts[1:])


def looks_like_a_path(name: str) -> bool:
    """Whether a name is meant for the disk, and no name that the hub could know: that has at most one slash.

    >>> [looks_like_a_path(name) for name in ("BeIR/scifact", "./scifact", "data/rows.jsonl", "a/b/c", "C:\\\\data")]
    [False, True, True, True, True]
    """
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or "#" in name
        or name.count("/") > 1
        or name.endswith(("/", *ENDINGS))
    )
