"""Read a source's name: a path, or a name that a library or the hub knows, and perhaps a split."""

from pathlib import Path

ENDINGS = (".json", ".jsonl", ".tsv", ".csv", ".txt", ".gz", ".parquet", ".arrow", ".yaml", ".run", ".qrels")
"""Endings of file names; no dataset's name ends like this."""


def split_name(source: str) -> tuple[str, str]:
    """Split a source into name and split: `NAME#SPLIT`, or `NAME` and an empty split.

    The longest name that exists on disk wins, so a folder's own name may contain a `#`.

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
    r"""Whether a name can only be a path: the hub's names have at most one slash.

    >>> [looks_like_a_path(name) for name in ("BeIR/scifact", "./scifact", "data/rows.jsonl", "a/b/c", "C:\\data")]
    [False, True, True, True, True]
    """
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or "#" in name
        or name.count("/") > 1
        or name.endswith(("/", *ENDINGS))
    )
