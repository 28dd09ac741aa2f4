"""`mrr rerank`: what goes in, what comes out on which stream, and the exit codes."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from mrr_model import Cascade, MatryoshkaReranker, reranker
from mrr_model.compression import Compression
from mrr_model.ranking import Ranking
from mrr_model.selection.choose import Choice

QUERY = "what is the panda?"
TEXTS = ["the panda is eating", "what", "panda panda panda", "is the panda?"]

Mrr = Callable[..., Any]


@pytest.fixture
def rerank(mrr: Mrr, encoder: Path) -> Mrr:
    """`mrr rerank` for QUERY on the tiny encoder."""
    words = ("rerank", "--query", QUERY, "--model", encoder, "--max-length", 64)
    return lambda *arguments, **options: mrr(*words, *arguments, **options)


def json_lines(rows: Iterable[object]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_plain_lines_come_back_as_json_lines_in_the_cores_order(rerank: Mrr, encoder: Path) -> None:
    rows = rerank("--depth", 4, "--keep-ratio", 0.5, stdin="\n" + "\n \n".join(TEXTS)).rows
    reranker = MatryoshkaReranker(encoder, depth=4, keep_ratio=0.5, max_length=64)
    assert rows == [
        {"text": ranked.text, "index": ranked.index, "rank": rank, "score": ranked.score}
        for rank, ranked in enumerate(reranker.rank(QUERY, TEXTS), 1)
    ]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_only_line_ends_separate_documents(rerank: Mrr, tmp_path: Path, ending: str) -> None:
    file = tmp_path / "documents.txt"
    file.write_bytes(b"\xef\xbb\xbf" + f"one\u2028line{ending}other{ending}".encode())
    assert {row["text"] for row in rerank(file).rows} == {"one\u2028line", "other"}


def test_json_objects_are_carried_through_and_titles_are_scored(rerank: Mrr, encoder: Path, tmp_path: Path) -> None:
    documents = [
        {"_id": "é", "title": "the", "text": TEXTS[0], "nested": {"page": [1, 2.5, None]}},
        {"id": 7, "title": None, "text": TEXTS[1], "score": "first stage", "half": "\ud800"},
        {"text": "", "title": TEXTS[2]},
    ]
    file = tmp_path / "documents.data"
    file.write_text("\n" + "\n".join(map(json.dumps, documents)), encoding="utf-8")
    scores = MatryoshkaReranker(encoder, max_length=64).score(QUERY, [f"the {TEXTS[0]}", TEXTS[1], TEXTS[2]])
    rows = rerank(file).rows
    assert [row["score"] for row in rows] == sorted(scores, reverse=True)
    assert [row["rank"] for row in rows] == [1, 2, 3]
    for row in rows:
        given = {("input_score" if key == "score" else key): value for key, value in documents[row["index"]].items()}
        assert row == {**given, **{key: row[key] for key in ("index", "rank", "score")}}
        assert row["score"] == scores[row["index"]]


@pytest.mark.parametrize(
    ("name", "options", "content", "as_json"),
    [
        ("a.txt", (), "plain\n", False),
        ("a.txt", (), '\n{"text": "x"}\n', True),
        ("a.txt", ("--input-format", "text"), '{"text": "x"}\n', False),
        ("a.txt", (), '["x"]\n', False),
        ("a.jsonl", (), '{"text": "x"}\n', True),
        ("a.data", ("--input-format", "jsonl"), '{"text": "x"}\n', True),
    ],
)
def test_input_format(
    rerank: Mrr, tmp_path: Path, name: str, options: Sequence[str], content: str, as_json: bool
) -> None:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    [row] = rerank(file, *options).rows
    assert row["text"] == ("x" if as_json else content.strip())


def test_top_n_min_score_and_raw(rerank: Mrr, encoder: Path) -> None:
    stdin = "\n".join(TEXTS)
    logits = sorted(MatryoshkaReranker(encoder, max_length=64, normalize=False).score(QUERY, TEXTS), reverse=True)
    assert [row["score"] for row in rerank("--raw", "-", stdin=stdin).rows] == logits
    assert [row["score"] for row in rerank("--raw", "--top-n", 2, stdin=stdin).rows] == logits[:2]
    assert [row["score"] for row in rerank("--raw", "--min-score", logits[2], stdin=stdin).rows] == logits[:3]


def test_a_cascade_gives_the_cores_ranking_with_depths(rerank: Mrr, encoder: Path) -> None:
    stdin = json_lines([{"text": text, "depth": "deep", "span": 1} for text in TEXTS])
    core = MatryoshkaReranker(encoder, max_length=64)
    for words, cascade in (
        (("--cascade", "2:0.5,4:0"), Cascade({2: 0.5, 4: 0.0})),
        (("--cascade", "2:3,3:1", "--cascade-by", "count"), Cascade({2: 3, 3: 1}, by="count")),
    ):
        ranking = core.rank(QUERY, TEXTS, top_n=2, cascade=cascade)
        assert rerank(*words, "--top-n", 2, stdin=stdin).rows == [
            {
                "text": item.text,
                "span": 1,
                "input_depth": "deep",
                "index": item.index,
                "rank": rank,
                "score": item.score,
                "depth": item.depth,
            }
            for rank, item in enumerate(ranking, 1)
        ]
    assert {row["depth"] for row in rerank(stdin=stdin).rows} == {"deep"}


def test_a_deadline_that_cuts_the_ranking_short_is_one_line_on_stderr(rerank: Mrr) -> None:
    stdin = "\n".join(TEXTS)
    result = rerank("--deadline-ms", 0, stdin=stdin)
    assert [(row["index"], row["score"], row["depth"]) for row in result.rows] == [(i, 0.0, 0) for i in range(4)]
    [line] = result.stderr.splitlines()
    assert line == "warning: --deadline-ms 0 cut the ranking short: 100% of the documents were not read."
    result = rerank("--deadline-ms", 1e9, stdin=stdin)
    assert ([row["depth"] for row in result.rows], result.stderr) == ([6] * 4, "")


def test_a_deadline_says_how_deep_the_documents_were_read(rerank: Mrr, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = Ranking(complete=False, shares={6: 0.2, 2: 0.5, 0: 0.3})
    monkeypatch.setattr(MatryoshkaReranker, "rank", lambda *arguments, **options: cut)
    assert rerank("--deadline-ms", 2.5, stdin="x").stderr == (
        "warning: --deadline-ms 2.5 cut the ranking short: 20% of the documents reached exit 6, 50% reached exit 2, "
        "30% were not read.\n"
    )


def test_a_split_document_has_the_span_of_its_own_text(rerank: Mrr, encoder: Path) -> None:
    text = "what what is it? " * 20 + "panda panda panda " * 4 + "the is what. " * 30
    rows = [{"title": "the", "body": text, "span": "mine"}, {"body": TEXTS[0]}]
    words = ("--long-documents", "max", "--window", 16, "--stride", 8, "--text-field", "body")
    found = {row["index"]: row for row in rerank(*words, stdin=json_lines(rows)).rows}
    reranker = MatryoshkaReranker(encoder, max_length=64, long_documents="max", window=16, stride=8)
    ranking = {item.index: item for item in reranker.rank(QUERY, [f"the {text}", TEXTS[0]])}
    start, end = found[0]["span"]
    assert found[0]["body"][start:end] in ranking[0].passage
    assert end - start >= len(ranking[0].passage) - len("the ")
    assert found[0]["input_span"] == "mine"
    assert "span" not in found[1]
    assert {index: row["score"] for index, row in found.items()} == {i: item.score for i, item in ranking.items()}
    cut = rerank("--text-field", "body", stdin=json_lines(rows)).rows
    assert {row.get("span") for row in cut} == {"mine", None}


def test_the_table_shows_the_window_the_depth_and_what_ran(rerank: Mrr, encoder: Path) -> None:
    text = "what what is it? " * 20 + "panda panda panda " * 4 + "the is what. " * 30
    words = ("--long-documents", "max", "--window", 16, "--cascade", "2:1", "--cascade-by", "count")
    result = rerank(
        *words, "--deadline-ms", 1e9, "--format", "table", stdin=json_lines([{"text": text}, {"text": "is it short?"}])
    )
    assert "keep ratio 1, cascade of counts 2:1, deadline 1e+09 ms, best windows" in " ".join(result.stdout.split())
    reranker = MatryoshkaReranker(encoder, max_length=64, long_documents="max", window=16)
    ranking = reranker.rank(QUERY, [text, "is it short?"], cascade=Cascade({2: 1}, by="count"))
    lines = result.stdout.splitlines()
    assert sum("depth" in line for line in lines) == 1
    for item in ranking:
        [line] = [line for line in lines if " ".join(item.passage.split())[:40] in " ".join(line.split())]
        assert f" {item.depth} " in line


@pytest.mark.parametrize("need", [("--keep-quality", 0.9), ("--speedup", 2)], ids=str)
def test_a_need_may_choose_a_cascade(rerank: Mrr, monkeypatch: pytest.MonkeyPatch, need: tuple[object, ...]) -> None:
    choice = Choice(Compression(5), "it is fast", Cascade({2: 1}, by="count"))
    monkeypatch.setattr(reranker, "choose", lambda *arguments, **options: choice)
    stdin = "\n".join(TEXTS)
    assert sorted(row["depth"] for row in rerank(*need, stdin=stdin).rows) == [2, 2, 2, 5]
    table = rerank(*need, "--format", "table", stdin=stdin).stdout
    assert "depth 5, keep ratio 1, cascade of counts 2:1" in " ".join(table.split())  # the title may be wrapped


@pytest.mark.parametrize("output", ["table", "jsonl"])
def test_no_documents_are_a_warning(rerank: Mrr, output: str) -> None:
    result = rerank("--format", output, stdin="\n\n")
    assert result.exit_code == 0
    assert result.stderr == "warning: stdin holds no documents.\n"
    assert (result.stdout == "") == (output == "jsonl")


def test_table_names_the_setting_and_shortens_texts(rerank: Mrr) -> None:
    documents = [{"_id": "doc-1", "text": "[bold]long[/bold] \x1b[31m\ttext " * 40}, {"text": "short"}]
    result = rerank("--format", "table", "--depth", 3, "--keep-ratio", "2:0.5", stdin=json_lines(documents), columns=60)
    assert result.exit_code == 0
    assert "depth 3, keep ratio 2:0.5" in " ".join(result.stdout.split())
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 60
    [first] = [line for line in lines if "doc-1" in line]
    assert "[bold]long[/bold] [31m text" in first
    assert "…" in first
    [second] = [line for line in lines if "short" in line]
    assert " 1 " in second, "a document without an id shows its index"


@pytest.mark.parametrize(
    ("arguments", "stdin", "part"),
    [
        (["--depth", "0"], "x", "depth must be at least 1"),
        (["--keep-ratio", "2:x"], "x", "keep_ratio='2:x' cannot be read"),
        (["--keep-ratio", "1.5"], "x", "keep_ratio must be in (0, 1]"),
        (["--top-n", "0"], "x", "top_n must be at least 1"),
        (["--dtype", "int8"], "x", "--dtype must be 'auto', 'float32'"),
        (["--prompt", "find"], "x", "has no prompt"),
        (["--max-length", "4096"], "x", "max_length=4096"),
        (["--depth", "deep"], "x", "--depth must be a whole number, got 'deep'."),
        (["--min-score", "much"], "x", "--min-score must be a number, got 'much'."),
        (["--format", "csv"], "x", "--format must be 'auto', 'table' or 'jsonl', got 'csv'."),
        (["--input-format", "csv"], "x", "--input-format must be 'auto', 'text' or 'jsonl'"),
        (["--speedup", "2", "--keep-quality", "0.5"], "x", "--keep-quality and --speedup each choose a setting"),
        (["--refresh-timings"], "x", "--refresh-timings goes with --max-latency-ms"),
        (["--if-unreachable", "fastest"], "x", "--if-unreachable goes with --speedup"),
        (["--if-unreachable", "no"], "x", "--if-unreachable must be 'raise' or 'fastest'"),
        (["--cascade", "2:far"], "x", "--cascade 2:far: stages='2:far' cannot be read"),
        (["--cascade", "2:-1"], "x", "--cascade 2:-1: stages[2] must be"),
        (["--cascade", "9:1"], "x", "cascade names exit 9, which this model lacks"),
        (["--cascade", "4:1", "--depth", "4"], "x", "cascade names exit 4, and the setting ends at exit 4"),
        (["--cascade", "auto"], "x", "cascade='auto' needs a cascade"),
        (["--cascade", "auto", "--cascade-by", "count"], "x", "--cascade-by goes with --cascade"),
        (["--cascade-by", "count"], "x", "--cascade-by goes with --cascade"),
        (["--cascade", "2:1", "--cascade-by", "rank"], "x", "--cascade-by must be 'margin' or 'count'"),
        (["--speedup", "2", "--cascade", "2:1"], "x", "--speedup chooses the cascade too. Leave out --cascade"),
        (["--deadline-ms", "-1"], "x", "--deadline-ms must be at least 0"),
        (["--deadline-ms", "soon"], "x", "--deadline-ms must be a number"),
        (["--long-documents", "split"], "x", "--long-documents must be 'truncate' or 'max'"),
        (["--window", "9"], "x", "window=9 needs long_documents='max'"),
        (["--long-documents", "max", "--window", "9", "--stride", "10"], "x", "stride=10 exceeds window=9"),
        (["--query", " "], "x", "query is empty"),
        (["--model", "no/such/folder"], "x", "model 'no/such/folder'"),
        (["no/such/file"], "", "no/such/file cannot be read: No such file"),
        (["."], "", ". cannot be read: Is a directory"),
        ([], b"\xff", "stdin is not UTF-8 text"),
        ([], '{"text": "x"}\n{"text": 1}', "stdin:2: expected a string under \"text\"; the keys are 'text'"),
        ([], '{"contents": "x"}', "stdin:1: expected a string under \"text\"; the keys are 'contents'"),
        ([], '{"text": "x", "title": 1}', 'stdin:1: expected a string under "title", got int'),
        ([], '{"text": "x"}\n\n["x"]', "stdin:3: expected one JSON object a line, got list"),
        ([], '{"text": "x"}\n{', "stdin:2: expected one JSON object a line, but this is not JSON"),
    ],
)
def test_a_wrong_argument_is_one_line(rerank: Mrr, arguments: list[str], stdin: str, part: str) -> None:
    assert part in rerank("--local-files-only", *arguments, stdin=stdin).error


@pytest.mark.filterwarnings("always::UserWarning")
def test_a_warning_is_one_line_on_stderr(rerank: Mrr) -> None:
    result = rerank("--depth", 9, stdin="x")
    assert len(result.rows) == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("warning: depth=9 is more than the 6 layers of ")


def test_ctrl_c_is_quiet(rerank: Mrr, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MatryoshkaReranker, "rank", interrupted)
    result = rerank(stdin="x")
    assert (result.exit_code, result.output) == (130, "")


def test_a_closed_pipe_is_quiet(rerank: Mrr, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> NoReturn:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("mrr_model.cli.rerank.write_json_lines", closed)
    result = rerank(stdin="x")
    assert (result.exit_code, result.output) == (1, "")


def test_output_is_utf_8_in_any_locale(rerank: Mrr) -> None:
    result = rerank(stdin=json.dumps({"text": "ünï"}), charset="ascii")
    assert (result.exit_code, result.stderr) == (0, "")
    assert '"text": "ünï"'.encode() in result.stdout_bytes


def test_rerank_passes_on_only_what_is_given(mrr: Mrr, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def record(model: str, **options: Any) -> NoReturn:
        seen.append(options)
        raise ValueError("seen")

    monkeypatch.setattr(reranker, "MatryoshkaReranker", record)
    always = {"device": "auto", "dtype": "auto", "normalize": True, "local_files_only": False}
    always["long_documents"] = "truncate"
    given = ["--depth", "3", "--keep-ratio", "0.5", "--max-length", "64", "--prompt", "p\udcff", "--batch-tokens", "9"]
    for words in ([], given):
        mrr("rerank", "-q", "x", *words, stdin="a")
    assert seen == [
        always,
        {**always, "depth": 3, "keep_ratio": "0.5", "max_length": 64, "prompt": "p\ufffd", "batch_tokens": 9},
    ]


def test_a_query_that_is_no_utf_8_is_scored_with_the_replacement_character(rerank: Mrr) -> None:
    def scored(query: str, text: str) -> tuple[int, str]:
        result = rerank("--query", query, "--depth", 2, stdin=text)
        return result.exit_code, result.stdout.partition('"index"')[2]

    code, expected = scored("panda \ufffd", '{"text": "what \ufffd"}')
    assert (code, bool(expected)) == (0, True)
    assert scored("panda \udce9", r'{"text": "what \ud83d"}') == (0, expected)
