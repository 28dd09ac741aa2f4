"""Render the result files into the pages: tables between markers, and the frontier picture.

    python benchmarks/render.py            # `make results`: rewrite README.md, docs/*.md and docs/images/frontier.svg
    python benchmarks/render.py --check    # exit with 1 if that would change anything

A page asks for a table with two lines:

    <!-- results: speed -->
    <!-- /results -->

What stands between them is replaced. The names are the keys of `result_tables.TABLES`; each table reads one or two
files of benchmarks/results/. A marker is an error if its name is unknown or its file is missing. The picture is drawn
if a page links to it.
"""

import argparse
import re
import sys
from pathlib import Path

from result_files import ROOT, RenderError, ResultFiles
from result_tables import TABLES, frontier_picture

PAGES = ("README.md", "docs/*.md")
PICTURE = Path("docs/images/frontier.svg")
OPEN = re.compile(r"^<!-- results: (?P<name>.*?) -->$")
CLOSE = "<!-- /results -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if a page or picture is stale"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds README.md, docs and benchmarks")
    arguments = parser.parse_args()
    try:
        rendered = render(arguments.root)
    except RenderError as error:
        sys.exit(f"error: {error}")
    stale = [file for file, text in rendered.items() if not file.is_file() or file.read_text(encoding="utf-8") != text]
    for file in stale:
        print(f"{'stale' if arguments.check else 'rendered'}: {file.relative_to(arguments.root)}")
        if not arguments.check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(rendered[file], encoding="utf-8", newline="\n")
    if arguments.check and stale:
        sys.exit("error: run `make results`.")


def render(root: Path) -> dict[Path, str]:
    """Render every page with a marker, and the picture if a page links to it.

    Args:
        root: Folder that holds README.md, docs/ and benchmarks/results/.

    Returns:
        File -> the text that it should hold.

    Raises:
        RenderError: If a marker is unknown, not closed, or its result file is missing or lacks a figure.
    """
    files = ResultFiles(root / "benchmarks" / "results")
    rendered: dict[Path, str] = {}
    linked = False
    for pattern in PAGES:
        for page in sorted(root.glob(pattern)):
            text = page.read_text(encoding="utf-8")
            linked = linked or f"images/{PICTURE.name}" in text
            if "<!-- results:" in text:
                try:
                    rendered[page] = render_page(text, files)
                except RenderError as error:
                    raise RenderError(f"{page.relative_to(root)}: {error}") from error
    if linked:
        rendered[root / PICTURE] = frontier_picture(files["quality"], files["time-share"], files["cascade"])
    return rendered


def render_page(text: str, files: ResultFiles) -> str:
    """Replace what stands between a page's markers; everything else stays as it is."""
    lines: list[str] = []
    inside: str | None = None
    for line in text.splitlines():
        opening = OPEN.match(line)
        if opening and inside is not None:
            raise RenderError(f"`{inside}` is not closed before `{opening['name']}`: add {CLOSE!r}.")
        if line == CLOSE:
            if inside is None:
                raise RenderError(f"{CLOSE!r} without an opening marker.")
            inside = None
        if inside is None:
            lines.append(line)
        if opening:
            inside = opening["name"]
            if inside not in TABLES:
                raise RenderError(f"no table is called {inside!r}; there are {', '.join(sorted(TABLES))}.")
            lines += ["", *TABLES[inside].render(files).splitlines(), ""]
    if inside is not None:
        raise RenderError(f"`{inside}` is not closed: add {CLOSE!r}.")
    return "\n".join(lines) + ("\n" if text.endswith("\n") else "")


if __name__ == "__main__":
    main()
