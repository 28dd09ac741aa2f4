"""The tables of the pages, and the picture: from result files to Markdown and SVG."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import batch_tables
import gpu_tables
from frontier import Point, draw
from markdown_tables import markdown
from result_files import BenchmarkResult, RenderError, ResultFiles, command_of

SIZES = ((4, 1.0), (4, 0.5), (3, 0.5), (2, 0.25))
"""The (depth, keep_ratio) pairs of the README's table, besides full size."""
AUTO = '`cascade="auto"`'
LEAST_SAMPLE = 10
"""Windows and strides that were compared on fewer queries are not shown: they differ by chance."""
Row = Mapping[str, Any]


QUANTIZED = "this package, linear layers quantized"
"""The contender that shows what int8 would do."""


@dataclass(frozen=True)
class Table:
    """One marker's content: the result files it reads, and how they become Markdown."""

    sources: tuple[str, ...]
    markdown: Callable[..., str]
    """Takes one `BenchmarkResult` for each source."""

    def render(self, files: ResultFiles) -> str:
        results = [files[name] for name in self.sources]
        try:
            body = self.markdown(*results)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise RenderError(f"{' and '.join(self.sources)} lacks what the table shows: {error!r}") from error
        return "\n\n".join([body, *map(source_line, results)])


def source_line(result: BenchmarkResult) -> str:
    """When and where a table's figures were measured, and the command to measure them again."""
    again = command_of(result.name)
    return f"<small>Measured on {result.date:%Y-%m-%d}, {result.machine}; again with `{again}`.</small>"


def sizes(quality: BenchmarkResult, time_share: BenchmarkResult, cascade: BenchmarkResult) -> str:
    rows = quality.results["settings"]
    shares = _by_setting(time_share.results["workloads"][0]["settings"])
    full = rows[0]
    cells = [
        [
            _setting(row, full),
            f"{row['mean']:.3f}",
            f"{row['kept']:.1%}",
            f"{shares[_key(row)]['time']:.0%}",
            f"{shares[_key(row)]['flops']:.0%}",
        ]
        for row in [full, *(_by_setting(rows)[setting] for setting in SIZES)]
    ]
    own = _cascaded(cascade)
    costs = [f"{share:.0%}" for share in _cascade_costs(cascade)]
    cells.insert(1, [AUTO, f"{own['mean']:.3f}", f"{own['kept']:.1%}", *costs])
    return markdown(["size", quality.results["metric"], "of full size", "time", "FLOPs"], cells)


def quality(result: BenchmarkResult) -> str:
    found = result.results
    names, full = list(found["collections"]), found["settings"][0]
    rows = [
        [row["name"], *(f"{row['values'][name]:.3f}" for name in names), f"{row['mean']:.3f}", ""]
        for row in found["baselines"]
    ]
    for row in found["settings"]:
        stars = {name: "*" if name in row["differs"] else "" for name in names}
        cells = [f"{row['values'][name]:.3f}{stars[name]}" for name in names]
        rows.append([_setting(row, full), *cells, f"{row['mean']:.3f}", f"{row['kept']:.1%}"])
    queries = [f"{name} ({facts['queries']} queries)" for name, facts in found["collections"].items()]
    table = markdown([found["metric"], *names, "mean", "of full size"], rows)
    return (
        f"{table}\n\n`*`: differs from full size, p < {found['significance']} in a paired t-test (not corrected for "
        f"the number of settings). Collections: {', '.join(queries)}."
    )


def calibration(result: BenchmarkResult) -> str:
    found = result.results
    names, full = list(found["collections"]), found["settings"][0]
    errors = markdown(
        ["expected calibration error", *names],
        [
            [
                _setting(row, full),
                *(f"{row['error'][name]['plain']:.3f} → {row['error'][name]['own']:.3f}" for name in names),
            ]
            for row in found["settings"]
        ],
    )
    ways = {"plain": "plain logistic function", "shared": "full size's map for all", "own": "own map"}
    spreads = [
        markdown(
            [f"spread of precision at {row['threshold']:g}", *names],
            [[label, *(_decimals(row["spread"][name][way], 2, "–") for name in names)] for way, label in ways.items()],
        )
        for row in found["thresholds"]
    ]
    fitted = found["fitted_on"]
    return (
        f"Plain logistic function → the setting's own map, fitted on {fitted['queries']} queries of "
        f"{fitted['collection']} ({fitted['pairs']:,} pairs, {fitted['relevant']:.1%} relevant) and measured on "
        f"queries that it has not seen:\n\n{errors}\n\nThe precision of what reaches a threshold, greatest less "
        f"smallest over the {len(found['settings'])} settings:\n\n" + "\n\n".join(spreads)
    )


def ablation(result: BenchmarkResult) -> str:
    found = result.results
    heads = [f"{row['depth']} / {row['keep_ratio']:g}" for row in found["settings"]]
    rows = []
    for variant in found["variants"]:
        mean = "" if variant["mean"] is None else _percent(variant["mean"])
        spread = "" if variant["spread"] is None else f" ± {_percent(variant['spread'])}"
        cells = ["" if value is None else _percent(value) for value in variant["values"]]
        rows.append([variant["name"], *cells, mean + spread])
    table = markdown([f"{found['metric']} (%), depth / keep_ratio", *heads, "mean"], rows)
    return (
        f"{table}\n\n{found['steps']} steps a variant, {found['queries']} queries of each collection, means of "
        f"{len(result.seeds)} seeds; ±: half the distance between their means."
    )


def adapters(result: BenchmarkResult) -> str:
    found = result.results
    full = {"depth": found["full"]["depth"], "keep_ratio": 1.0}
    rows = [
        [_setting(row, full), _decimals(row["with"]), _decimals(row["without"]), f"{row['difference']:+.3f}"]
        for row in found["settings"]
    ]
    mean = found["mean"]
    every = [_decimals(mean["with"]), _decimals(mean["without"]), f"{mean['with'] - mean['without']:+.3f}"]
    rows.append([f"mean of {mean['settings']} compressed settings", *every])
    return markdown([found["metric"], "with adapters", "without", "difference"], rows)


def elastic(result: BenchmarkResult) -> str:
    found = result.results
    names, full = list(found["collections"]), found["full"]
    same = markdown(
        [f"{found['metric']}, {full['queries']} queries each", *names],
        [
            [label, *(_decimals(full[key][name], 4) for name in names)]
            for key, label in (("cross_encoder", "CrossEncoder"), ("this_package", "this package, full size"))
        ],
    )
    widths = markdown(
        ["without training, all layers", found["metric"], "of full size", "FLOPs"],
        [
            [
                f"keep ratio {row['keep_ratio']}",
                _decimals(row["quality"]),
                f"{row['kept']:.1%}",
                f"{row['flops']:.0%}",
            ]
            for row in found["widths"]
        ],
    )
    rows = [
        [
            _setting(row, found["settings"][0]),
            *(_decimals(row[key]) for key in ("quality", "without")),
            *(f"{row[key]:.1%}" for key in ("kept", "kept_without")),
        ]
        for row in found["settings"]
    ]
    sizes = markdown(["size", "self-distilled", "cut or narrowed", "of full size", "of full size, cut"], rows)
    queries = ", ".join(f"{name} ({facts['queries']} queries)" for name, facts in found["collections"].items())
    shallow = found["shallow"]
    variants = markdown(
        [f"`depth={shallow['depth']}`: exits trained together", "LoRA rank", "of full size"],
        [[row["exits"], str(row["rank"]), f"{row['kept']:.1%}"] for row in shallow["variants"]],
    )
    targets = "\n\n".join(
        f"{_setting(row, found['settings'][0])} was to keep {row['least']:.0%} and keeps {row['kept']:.1%}."
        for row in found["targets"]
    )
    training = found["training"]
    return (
        f"{same}\n\nThe largest difference of two logits is {full['largest_difference']:.0e}.\n\n"
        f"{widths}\n\n{sizes}\n\n"
        f"Self-distilled on {training['rows']:,} unlabelled questions with eight passages each, in "
        f"{training['seconds'] / 60:.0f} minutes. Collections: {queries}.\n\n{targets}\n\n{variants}"
    )


def targets(result: BenchmarkResult) -> str:
    rows = []
    for row in result.results["summary"]:
        values = ", ".join(f"{value:g}" for value in row["values"])
        missed = [f"{each['collection']}: {each['value']:g} asked, {each['got']:.2g} got" for each in row["missed"]]
        rows.append([f"`{row['target']}` = {values}", str(row["choices"]), str(row["met"]), "; ".join(missed)])
    return markdown(["target", "choices", "met", "missed"], rows, numbers=(1, 2))


def cascade(result: BenchmarkResult, quality: BenchmarkResult) -> str:
    found = result.results
    own = found["cascade"]
    timed = ", ".join(f"{each['queries']} of {each['collection']}" for each in found["time"])
    overhead = ", ".join(f"{each['overhead_of_dropping_nothing']:+.1%}" for each in found["time"])
    return (
        f"{_cascade_quality(found)}\n\nThe cascade's {own['text']} were fitted so that at most {own['lost']:.0%} of "
        f"the queries lose one of full size's best {own['top_n']} documents.\n\n{_cascade_time(found, quality)}\n\n"
        f"Queries with 100 candidates each: {timed}; {found['dtype']}. A cascade that drops nothing changes full "
        f"size's time by {overhead}.\n\n{_cascade_transfer(found)}"
    )


def _cascade_quality(found: dict[str, Any]) -> str:
    names = list(found["collections"])
    rows = [
        [
            AUTO if row["cascade"] else "full size",
            *(_decimals(row["values"][name]) for name in names),
            _decimals(row["mean"]),
            f"{row['kept']:.1%}",
            f"{row['min_kept']:.1%}",
        ]
        for row in found["quality"]
    ]
    return markdown([found["metric"], *names, "mean", "of full size", "least"], rows)


def _cascade_time(found: dict[str, Any], quality: BenchmarkResult) -> str:
    sizes = _by_setting(quality.results["settings"])
    kept = next(row["kept"] for row in found["quality"] if row["cascade"])
    rows = [
        [
            f"{name}, {each['collection']}",
            f"{row['share']:.0%}",
            f"{row['median']:.0%}",
            f"{row['p10']:.0%} to {row['p90']:.0%}",
            f"{row['flops']:.0%}" if "flops" in row else "",
            f"{own:.1%}",
        ]
        for each in found["time"]
        for name, row, own in [
            (AUTO, each["cascade"], kept),
            *((_setting(row, quality.results["settings"][0]), row, sizes[_key(row)]["kept"]) for row in each["fixed"]),
        ]
    ]
    heads = ["timed on", "share of full size's time", "median query", "10 % to 90 % of the queries", "FLOPs"]
    return markdown([*heads, "quality kept, of all"], rows)


def _cascade_transfer(found: dict[str, Any]) -> str:
    rows = [
        [
            row["held_out"],
            row["stages"],
            "" if row["lost"] is None else f"{row['lost']:.1%}",
            f"{row['kept']:.1%}",
            f"{row['flops']:.0%}",
        ]
        for row in found["transfer"]
    ]
    heads = ["fitted on the others, measured on", "margins", "queries that lose one of the best 10"]
    return markdown([*heads, "of full size", "FLOPs"], rows, numbers=(2, 3, 4))


def speed(result: BenchmarkResult) -> str:
    found = result.results
    parts = []
    for workload in found["workloads"]:
        rows = [
            [
                row["name"],
                row["dtype"],
                "" if row["batch_size"] is None else str(row["batch_size"]),
                f"{row['pairs_per_second']:.0f}",
                f"{row['ours_same_dtype']:.2f} ×" if "ours_same_dtype" in row else "",
                f"{row['ours_default']:.2f} ×",
            ]
            for row in workload["contenders"]
        ]
        heads = ["contender", "dtype", "batch size", "pairs/s", "this package, same dtype", "this package, default"]
        parts.append(f"{_workload(workload)}:\n\n{markdown(heads, rows, numbers=(2, 3, 4, 5))}")
        parts += [f"Left out, {backend}: {why}" for backend, why in workload.get("left_out", {}).items()]
    quantized = [_quantized(each["contenders"]) for each in found["workloads"]]
    if any(quantized):
        default, single = (f"{min(each):.2f} to {max(each):.2f}" for each in zip(*filter(None, quantized), strict=True))
        parts.append(
            f"Linear layers that torch quantizes dynamically, at full size: {default} times as many pairs a second as "
            f"in {found['default_dtype']}, {single} times as many as in float32."
        )
    versions = found.get("peer_versions", {})
    if versions:
        listed = "; ".join(", ".join(map(" ".join, each.items())) for each in versions.values())
        parts.append(
            "CrossEncoder's backends are exported by sentence-transformers: ONNX's int8 is dynamic quantization, "
            "OpenVINO's is static, calibrated on the passages that are scored. Each is at its best batch size."
        )
        parts.append(f"Backends: {listed}.")
    return "\n\n".join(parts)


def _quantized(rows: Sequence[Row]) -> tuple[float, ...]:
    """This package's speed with quantized linear layers over that in its default dtype and in float32, if measured."""
    ours = {row["dtype"]: row["ours_default"] for row in rows if row["name"] in ("this package", QUANTIZED)}
    return (1 / ours["int8"], ours["float32"] / ours["int8"]) if "int8" in ours else ()


def speed_models(result: BenchmarkResult) -> str:
    found = result.results
    rows = [
        [
            f"{model['name']} ({model['parameters'] / 1e6:.0f}M)",
            row["dtype"],
            f"{row['against_best']:.2f} ×",
            f"{row['against_default']:.2f} ×",
            f"{row['narrow_against_best']:.2f} ×",
            f"{row['pairs_per_second']['full']:.1f}",
            f"{row['pairs_per_second']['best']:.1f} ({row['best_batch_size']})",
        ]
        for model in found["models"]
        for row in model["dtypes"]
    ]
    heads = [
        "shape", "dtype", "full size against CrossEncoder's best", "against its default",
        f"`keep_ratio={found['keep_ratio']:g}` against its best", "pairs/s at full size", "CrossEncoder's best",
    ]  # fmt: skip
    table = markdown(heads, rows, numbers=(2, 3, 4, 5, 6))
    backends = [
        [
            model["name"],
            f"{row['name']}, {row['dtype']}",
            f"{row['pairs_per_second']:.1f} ({row['batch_size']})",
            f"{ours['dtype']}",
            f"{row['against']:.2f} ×",
            f"{row['narrow_against']:.2f} ×",
        ]
        for model in found["models"]
        for ours in model["dtypes"]
        for row in ours.get("peers", [])
    ]
    if backends:
        heads = [
            "shape", "contender", "pairs/s at its best", "this package in", "full size against it",
            f"`keep_ratio={found['keep_ratio']:g}` against it",
        ]  # fmt: skip
        table += f"\n\n{markdown(heads, backends, numbers=(2, 4, 5))}"
    for model in found["models"]:
        for backend, why in model.get("left_out", {}).items():
            table += f"\n\n{model['name']}, left out, {backend}: {why}"
    sizes = ", ".join(map(str, found["batch_sizes"]))
    return (
        f"{table}\n\nRandom weights, parameters without embeddings; one query with {found['passages']} passages of "
        f"{found['words'][0]} to {found['words'][1]} words (mean {found['mean_words']:.0f}). CrossEncoder's best is "
        f"that of batch sizes {sizes}, in brackets; its default is {found['default_batch_size']}."
    )


def time_share(result: BenchmarkResult) -> str:
    tables = []
    for workload in result.results["workloads"]:
        full = workload["settings"][0]
        rows = [
            [
                _setting(row, full),
                f"{row['pairs_per_second']:.0f}",
                f"{row['time']:.0%}",
                f"{row['model_time']:.0%}",
                f"{row['flops']:.0%}",
                f"{row['model_time'] / row['flops']:.2f}",
            ]
            for row in workload["settings"]
        ]
        heads = ["size", "pairs/s", "time", "time without tokenizing", "FLOPs", "time without tokenizing / FLOPs"]
        tables.append(
            f"{_workload(workload)}, {workload['dtype']}; full size runs at {workload['share_of_matmul']:.0%} of a "
            f"large matrix product's FLOPs per second:\n\n{markdown(heads, rows)}"
        )
    return "\n\n".join(tables)


def memory(result: BenchmarkResult) -> str:
    found = result.results
    full = found["settings"][0]
    rows = [
        [_setting(row, full), row["dtype"], f"{row['loaded_mib']} MiB", f"{row['peak_mib']} MiB"]
        for row in found["settings"]
    ]
    table = markdown(["size", "dtype", "`mini` loaded", "peak"], rows, numbers=(2, 3))
    return (
        f"{table}\n\nResident memory of a process that scores {found['passages']} passages of {found['tokens']} "
        f"tokens; means of {found['runs']} processes."
    )


def cold_start(result: BenchmarkResult) -> str:
    found = result.results
    rows = [[part["name"], f"{part['seconds']:.2f}"] for part in found["parts"]]
    rows.append(["from the start to the ranking", f"{found['seconds']:.2f}"])
    return f"{markdown(['part', 'seconds'], rows)}\n\nMedians of {found['runs']} processes."


def training(result: BenchmarkResult) -> str:
    found = result.results
    rows = [
        [
            row["stage"],
            f"{row['pairs_per_second']:.0f}",
            f"{row['step_seconds']:.2f}",
            f"{row['peak_mib'] / 1024:.1f} GiB",
        ]
        for row in found["stages"]
    ]
    return markdown(["stage", "pairs/s", f"seconds a step of {found['pairs_per_step']} pairs", "peak memory"], rows)


def precision(result: BenchmarkResult) -> str:
    found = result.results
    full = found["rows"][0]
    rows = [
        [
            row["collection"],
            _setting(row, full),
            f"{row['float32']:.4f}",
            f"{row['bfloat16']:.4f}",
            f"{row['bfloat16'] - row['float32']:+.4f}",
            f"{row['tau']:.4f}",
        ]
        for row in found["rows"]
    ]
    metric = found["metric"]
    heads = ["collection", "size", f"{metric}, float32", f"{metric}, bfloat16", "difference", "Kendall's tau"]
    return markdown(heads, rows, numbers=(2, 3, 4, 5))


def long_documents(result: BenchmarkResult) -> str:
    found = result.results
    facts, split = found["collection"], found["ways"][1]
    ways = markdown(
        ["`long_documents`", found["metric"], "ms per query", 'time of `"max"`'],
        [
            [
                row["name"],
                _decimals(row["quality"]),
                f"{row['ms_per_query']:.0f}",
                f"{row['ms_per_query'] / split['ms_per_query']:.0%}",
            ]
            for row in found["ways"]
        ],
    )
    windows = markdown(
        ["window, tokens", "stride, of a window", "windows per document", found["metric"], "ms per query"],
        [
            [
                "as many as fit" if row["window"] is None else str(row["window"]),
                f"{row['stride']:g}",
                f"{row['windows_per_document']:.1f}",
                _decimals(row["quality"]),
                f"{row['ms_per_query']:.0f}",
            ]
            for row in found["windows"]
        ],
    )
    tokens = facts["tokens"]
    enough = found["sample"] >= LEAST_SAMPLE
    compared = f"\n\nWindows and strides, on {found['sample']} of the queries:\n\n{windows}" if enough else ""
    return (
        f"{ways}\n\n`{found['model']}`, {found['dtype']}, `max_length={found['max_length']}`; {facts['queries']} "
        f"queries with {facts['candidates']:g} candidates each, among them the relevant one for "
        f"{facts['with_relevant_candidate']:.0%}. Documents have {tokens['least']} to {tokens['most']} tokens (mean "
        f"{tokens['mean']}).{compared}"
    )


def deadlines(result: BenchmarkResult) -> str:
    found = result.results
    rows = []
    for row in found["deadlines"]:
        late = row.get("overshoot_ms")
        rows.append(
            [
                f"full size, {row['ms']['p50']:.0f} ms" if late is None else f"{row['deadline_ms']:g} ms",
                "" if late is None else " / ".join(f"{late[each]:.1f}" for each in ("p50", "p95", "p99")),
                ", ".join(f"{share:.0%} at {exit_layer}" for exit_layer, share in row["shares"].items()),
                _decimals(row["quality"]),
            ]
        )
    heads = ["`deadline_ms`", "overshoot in ms, p50 / p95 / p99", "documents by exit", found["metric"]]
    return (
        f"{markdown(heads, rows, numbers=(1, 3))}\n\n`{found['model']}`, {found['dtype']}; {found['queries']} queries "
        f"of {found['collection']} with {found['candidates']:g} candidates each, whose first-stage order has "
        f"{found['metric']} {_decimals(found['first_stage'])}. Exit 0: not read."
    )


def serving(result: BenchmarkResult) -> str:
    found = result.results
    contenders = markdown(
        ["server", "`mrr serve` against it", "pairs/s", "latency in ms, p50 / p99", "answers by status"],
        [
            [
                row["name"],
                f"{row['ours']:.2f} ×",
                f"{row['pairs_per_second']:.0f}",
                _percentiles(row["ms"], 0),
                _counts(row["answers"]),
            ]
            for row in found["contenders"]
        ],
        numbers=(1, 2, 3),
    )
    checked, rss, shed = found["checked"], found["rss_mib"], found["shedding"]
    shedding = markdown(
        ["server", "against idle, p50 / p99", "latency in ms, p50 / p99", "idle, p50 / p99", "settings", "by status"],
        [
            [
                f"`{row['name']}`",
                _percentiles(row["against_idle"], 1, " ×"),
                _percentiles(row["ms"], 0),
                _percentiles(row["idle_ms"], 0),
                ", ".join(f"{share:.0%} {setting}" for setting, share in row["settings"].items()),
                _counts(row["answers"]),
            ]
            for row in shed["servers"]
        ],
        numbers=(1, 2, 3),
    )
    return (
        f"{contenders}\n\n`{found['model']}`, {found['dtype']}; {found['clients']} clients with requests of "
        f"{found['documents'][0]} to {found['documents'][1]} documents (mean {found['mean_documents']:.0f}), "
        f"{found['seconds']:.0f} seconds in {found['turns']} turns. Of {checked['answers']:,} answers of `mrr serve`, "
        f"{checked['lost']} were lost, {checked['doubled']} doubled and {checked['mixed_up']} mixed up; scores differ "
        f"from the core's by at most {checked['largest_difference']:.0e}. Its memory: {rss['first']:.0f} MiB after "
        f"{rss['after_seconds']} seconds, {rss['last']:.0f} MiB at the end. The clients took "
        f"{found['client_cpu']:.1%} of a core at most.\n\nArrivals at {shed['load']:g} times what full size does "
        f"({shed['requests_per_second']:.1f} requests per second, for {shed['seconds']:.0f} seconds):\n\n{shedding}"
    )


def frontier_picture(quality: BenchmarkResult, time_share: BenchmarkResult, cascade: BenchmarkResult) -> str:
    """Quality of every setting, and of the cascade, against the share of full size's time and FLOPs."""
    workload = time_share.results["workloads"][0]
    shares = _by_setting(workload["settings"])
    points = [
        Point(row["depth"], row["keep_ratio"], row["mean"], (shares[_key(row)]["time"], shares[_key(row)]["flops"]))
        for row in quality.results["settings"]
    ]
    own = _cascaded(cascade)
    points.append(Point(own["depth"], own["keep_ratio"], own["mean"], _cascade_costs(cascade), AUTO.strip("`")))
    return draw(
        points,
        costs=("time, share of full size's", "FLOPs, share of full size's"),
        metric=f"{quality.results['metric']}, mean of {len(quality.results['collections'])} collections",
        baselines={row["name"]: row["mean"] for row in quality.results["baselines"]},
    )


TABLES: dict[str, Table] = {
    "sizes": Table(("quality", "time-share", "cascade"), sizes),
    "quality": Table(("quality",), quality),
    "calibration": Table(("calibration",), calibration),
    "ablation": Table(("ablation",), ablation),
    "adapters": Table(("adapters",), adapters),
    "targets": Table(("targets",), targets),
    "cascade": Table(("cascade", "quality"), cascade),
    "speed": Table(("speed",), speed),
    "elastic": Table(("elastic",), elastic),
    "speed-models": Table(("speed-models",), speed_models),
    "time-share": Table(("time-share",), time_share),
    "memory": Table(("memory",), memory),
    "cold-start": Table(("cold-start",), cold_start),
    "training": Table(("training",), training),
    "precision": Table(("precision",), precision),
    "long-documents": Table(("long-documents",), long_documents),
    "deadlines": Table(("deadlines",), deadlines),
    "serving": Table(("serving",), serving),
    "batch": Table(("batch",), batch_tables.batch),
    "sizing": Table(("time-share", "speed", "speed-models", "gpu"), batch_tables.sizing),
    "gpu": Table(("gpu",), gpu_tables.speed),
    "gpu-budgets": Table(("gpu",), gpu_tables.budgets),
    "gpu-memory": Table(("gpu",), gpu_tables.memory),
}
"""Marker -> its table."""


def _cascaded(cascade: BenchmarkResult) -> Row:
    """The quality of the cascade."""
    found: Row = next(row for row in cascade.results["quality"] if row["cascade"])
    return found


def _cascade_costs(cascade: BenchmarkResult) -> tuple[float, float]:
    """The cascade's shares of full size's time and FLOPs, averaged over the timed collections."""
    timed = [row["cascade"] for row in cascade.results["time"]]
    return mean(row["share"] for row in timed), mean(row["flops"] for row in timed)


def _key(row: Row) -> tuple[int, float]:
    return row["depth"], row["keep_ratio"]


def _by_setting(rows: Sequence[Row]) -> dict[tuple[int, float], Row]:
    return {_key(row): row for row in rows}


def _setting(row: Row, full: Row) -> str:
    """A setting as the arguments of a call."""
    depth, keep_ratio = _key(row)
    if _key(row) == _key(full):
        return "full size"
    return f"`depth={depth}`" if keep_ratio == 1 else f"`depth={depth}, keep_ratio={keep_ratio:g}`"


def _workload(row: Row) -> str:
    return f"**{row['model']}**, one query with {row['passages']} passages of {row['words']} words"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _percentiles(values: Mapping[str, float], digits: int, unit: str = "") -> str:
    return " / ".join(f"{values[each]:,.{digits}f}{unit}" for each in ("p50", "p99"))


def _counts(answers: Mapping[str, int]) -> str:
    return ", ".join(f"{status}: {count:,}" for status, count in answers.items())


def _decimals(value: float | None, digits: int = 3, missing: str = "") -> str:
    return missing if value is None else f"{value:.{digits}f}"
