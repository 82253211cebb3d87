#!/usr/bin/env python3
"""Tables and plots of docs/performance.md, and the capacity in docs/production.md, from a file of
results that the benchmarks wrote.

    plot.py [FILE]    writes the tables into the documents, and the plots into docs/performance/.
                      Without FILE: those of the file that docs/performance.md shows now.
    plot.py --check   fails if the tables of the documents differ from the file. Needs no matplotlib.

docs/performance.md has a line `<!-- results: FILE -->`. Both have places that begin with
`<!-- table: NAME -->`, `<!-- machine -->`, `<!-- targets -->` or `<!-- capacity -->` and end with
`<!-- end -->`.
"""

import json
import math
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs/performance.md"
PRODUCTION = ROOT / "docs/production.md"
PLOTS = ROOT / "docs/performance"

# What was aimed at: what, at least or at most, how much, its unit, and the table, row and column
# with the figure.
ENCRYPT = {"handler": "kms-proxy /v1/encrypt"}
DECRYPT = {"handler": "kms-proxy /v1/decrypt"}
BATCH = {"call": "batch of 100, encrypt"}
RAW = {"plaintext": "1 MiB", "call": "encrypt"}
TARGETS = [
    ("256 B, encrypt: rate to bare JSON", ">=", 0.9, "", "bare", {**ENCRYPT, "plaintext": "256 B"}, "ratio"),
    ("256 B, decrypt: rate to bare JSON", ">=", 0.9, "", "bare", {**DECRYPT, "plaintext": "256 B"}, "ratio"),
    ("4 KiB, encrypt: rate to bare JSON", ">=", 1.0, "", "bare", {**ENCRYPT, "plaintext": "4 KiB"}, "ratio"),
    ("4 KiB, decrypt: rate to bare JSON", ">=", 1.0, "", "bare", {**DECRYPT, "plaintext": "4 KiB"}, "ratio"),
    ("batch of 100 at 256 B: items to OpenBao's", ">=", 10, "", "openbao", BATCH, "ratio"),
    ("batch of 100 at 256 B: CPU of an item", "<=", 1.7, " us", "openbao", BATCH, "cpu_us"),
    ("1 MiB raw, encrypt: CPU to the bare handler's", "<=", 2, "", "raw", RAW, "cpu_ratio"),
    ("1 MiB raw, decrypt: CPU to the bare handler's", "<=", 2, "", "raw", {**RAW, "call": "decrypt"}, "cpu_ratio"),
    ("1 MiB raw, encrypt: CPU", "<=", 1200, " us", "raw", RAW, "cpu_us"),
    ("HTTPS, 256 B: rate to HTTP", ">=", 0.75, "", "https", {"plaintext": "256 B"}, "ratio"),
    ("HTTPS, 4 KiB: rate to HTTP", ">=", 0.7, "", "https", {"plaintext": "4 KiB"}, "ratio"),
    (
        "in process, seal 256 B: time to its two AES-GCM operations",
        "<=", 1.2, "", "micro", {"plaintext": "256 B", "call": "seal"}, "ratio",
    ),
    ("in process, seal 64 KiB: speed to AWS-LC's AES-GCM", ">=", 0.95, "", "micro", {"plaintext": "64 KiB", "call": "seal"}, "aws_lc_speed"),
    ("in process, seal 1 MiB: speed to AWS-LC's AES-GCM", ">=", 0.95, "", "micro", {"plaintext": "1 MiB", "call": "seal"}, "aws_lc_speed"),
    ("in process, open 1 MiB: speed to AWS-LC's AES-GCM", ">=", 0.95, "", "micro", {"plaintext": "1 MiB", "call": "open"}, "aws_lc_speed"),
]


def main(arguments):
    document = DOCUMENT.read_text()
    shown = re.search(r"<!-- results: (\S+) -->", document)
    if arguments == ["--check"]:
        results = read(ROOT / shown[1])
        for path in [DOCUMENT, PRODUCTION]:
            if filled(path.read_text(), results) != path.read_text():
                sys.exit(f"{path.relative_to(ROOT)} differs from {shown[1]}: run `make performance`")
        return
    path = Path(arguments[0]).resolve() if arguments else ROOT / shown[1]
    results = read(path)
    document = document.replace(shown[0], f"<!-- results: {path.relative_to(ROOT)} -->")
    DOCUMENT.write_text(filled(document, results))
    PRODUCTION.write_text(filled(PRODUCTION.read_text(), results))
    plot(results)


def read(path):
    results = json.loads(path.read_text())
    if results["is_quick"]:
        sys.exit(f"{path} is of a quick run: its figures say little")
    results["tables"] = {table["name"]: table for table in results["tables"]}
    return results


def filled(document, results):
    """The document with its places filled."""

    def fill(place):
        kind, name = place[1], place[2]
        if kind == "machine":
            text = machine(results)
        elif kind == "targets":
            text = targets(results)
        elif kind == "capacity":
            text = capacity(results)
        elif name in results["tables"]:
            text = markdown(results["tables"][name])
        else:
            sys.exit(f"the results have no table {name}: run `make bench`")
        head = f"<!-- {kind}: {name} -->" if name else f"<!-- {kind} -->"
        return f"{head}\n\n{text}\n\n<!-- end -->"

    pattern = r"<!-- (machine|targets|capacity|table)(?:: (\w+))? -->.*?<!-- end -->"
    return re.sub(pattern, fill, document, flags=re.DOTALL)


def machine(results):
    about = results["machine"]
    names = {"aes": "AES-NI", "avx2": "AVX2", "vaes": "VAES", "avx512f": "AVX-512"}
    has = [name for key, name in names.items() if key in about["extensions"]]
    lacks = [name for key, name in names.items() if key not in about["extensions"]]
    extensions = "with " + ", ".join(has) + (", without " + ", ".join(lacks) if lacks else "")
    commit = f", commit {results['commit']}" if results["commit"] else ""
    return (
        f"{about['processor']}, {about['cores']} cores, {extensions}; Linux {about['kernel']}; "
        f"{about['compiler']}.\nkms-proxy {results['version']}{commit}, measured on {results['date']}."
    )


def markdown(table):
    """The table, and above it what was measured."""
    columns, rows = table["columns"], table["rows"]
    numeric = [not isinstance(rows[0][column["key"]], str) for column in columns]
    lines = [
        [column["title"] for column in columns],
        ["---:" if is_number else "---" for is_number in numeric],
    ]
    lines += [[cell(row[column["key"]], column["digits"]) for column in columns] for row in rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table['about']}\n\n{text}"


def cell(value, digits):
    return value if isinstance(value, str) else "-" if value is None else f"{value:,.{digits}f}"


def targets(results):
    lines = ["| | target | measured | met |", "| --- | --- | ---: | --- |"]
    for what, relation, bound, unit, table, wanted, key in TARGETS:
        rows = results["tables"][table]["rows"]
        row = next(row for row in rows if wanted.items() <= row.items())
        is_met = row[key] >= bound if relation == ">=" else row[key] <= bound
        words = "at least" if relation == ">=" else "at most"
        lines.append(f"| {what} | {words} {bound:,}{unit} | {row[key]:,.4g}{unit} | {'yes' if is_met else 'no'} |")
    return "\n".join(lines)


def capacity(results):
    """What a core carries: the reciprocal of the CPU time that a call takes of the service."""

    def row(table, **wanted):
        rows = results["tables"][table]["rows"]
        return next(row for row in rows if wanted.items() <= row.items())

    calls = [
        ("encrypt, 256 B, HTTPS", row("https", plaintext="256 B")["cpu_us"]),
        ("encrypt, 4 KiB, HTTPS", row("https", plaintext="4 KiB")["cpu_us"]),
        ("item of a batch of 100, 256 B, HTTP", row("openbao", **BATCH)["cpu_us"]),
        ("encrypt, 1 MiB raw, HTTP", row("raw", **RAW)["cpu_us"]),
    ]
    lines = [
        "| call | CPU of a call in us | calls/s of a core | calls/s of a replica: 2 cores, at 60 % | calls/s of three replicas, one of them down |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, cpu in calls:
        core = 1e6 / cpu
        replica = 2 * 0.6 * core
        # Two of them: the third may be lost or be updated.
        lines.append(f"| {name} | {cpu:,.4g} | {rounded(core)} | {rounded(replica)} | {rounded(2 * replica)} |")
    call, token = (
        row("aws", plaintext="256 B", call=f"/v1/encrypt, {what}")["cpu_us"] for what in ["no identity", "token"]
    )
    plain, audit = (
        row("options", plaintext="256 B", **{"with": what})["cpu_us"] for what in ["nothing", "audit, full"]
    )
    memory = row("memory", server="kms-proxy")
    writes = results["tables"]["writes"]["rows"][0]["writes_per_million"]
    lines += [
        "",
        f"A token adds {max(token - call, 0):.1f} us to a call, and a line in the audit log {max(audit - plain, 0):.1f} us. "
        f"A replica takes {memory['start_mib']:,.0f} MiB of\nmemory after its start and {memory['mib']:,.0f} MiB after load. "
        f"A million encrypts take {writes:,.0f} writes to etcd.",
        "",
        machine(results),
    ]
    return "\n".join(lines)


def rounded(value):
    """Two significant digits: the machine decides the rest."""
    digits = 1 - math.floor(math.log10(value))
    return f"{round(value, digits):,.0f}"


# Colours that are readable on a white and on a black page.
TEXT, OURS, OTHERS = "#7d8590", "#2f81f7", "#d29922"


def plot(results):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({
        "svg.fonttype": "none",
        "svg.hashsalt": "kms-proxy",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial", "sans-serif"],
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        **{f"{part}.color": TEXT for part in ["text", "xtick", "ytick"]},
        **{f"axes.{part}": TEXT for part in ["labelcolor", "edgecolor", "titlecolor"]},
    })
    PLOTS.mkdir(exist_ok=True)
    rows = results["tables"]["openbao"]["rows"]
    labels = [f"{row['call']}, {row['plaintext']}" for row in rows]
    for name, title, key, scale in [
        ("rate", "requests per second, of a batch items (logarithmic)", "rate", 1),
        ("cpu", "us of CPU per request, of a batch per item (logarithmic)", "cpu_us", 1),
        ("p99", "p99 in ms (logarithmic)", "p99_us", 1e-3),
    ]:
        bars = {
            "kms-proxy": (OURS, [row[key] * scale for row in rows]),
            "OpenBao": (OTHERS, [row[f"openbao_{key}"] * scale for row in rows]),
        }
        draw(PLOTS / f"openbao-{name}.svg", title, labels, bars, log=True)
    rows = [row for row in results["tables"]["bare"]["rows"] if "as large as" not in row["handler"]]
    names = list(dict.fromkeys(row["handler"] for row in rows))
    bars = {}
    for colour, size in [(OURS, "256 B"), (OTHERS, "4 KiB")]:
        ratios = {row["handler"]: row["ratio"] for row in rows if row["plaintext"] == size}
        bars[size] = (colour, [ratios[name] for name in names])
    draw(PLOTS / "bare.svg", "requests per second, to the bare handler of the same JSON", names, bars)


def draw(path, title, labels, bars, log=False):
    """Groups of horizontal bars, each with its figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1 + 0.4 * len(labels)), layout="constrained")
    axes = figure.subplots()
    height = 0.38
    for index, (name, (colour, values)) in enumerate(bars.items()):
        places = [place + (index - 0.5) * height for place in range(len(labels))]
        drawn = axes.barh(places, values, height, label=name, color=colour)
        texts = [f" {value:,.3g}" if value < 100 else f" {value:,.0f}" for value in values]
        axes.bar_label(drawn, texts, color=TEXT, fontsize=8)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.tick_params(length=2, width=0.6)
    axes.margins(x=0.12)
    if log:
        axes.set_xscale("log")
        least = min(value for _, values in bars.values() for value in values)
        axes.set_xlim(left=10 ** math.floor(math.log10(least)))
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    figure.legend(frameon=False, fontsize=8, loc="outside upper right", ncols=2)
    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main(sys.argv[1:])
