#!/usr/bin/env python3
"""Writes a table of benchmarks: trimnet and its Python peers, side by side. Run it from the crate's root.

    benches/table.py PEERS                  measures everything, by PEERS/compare, and writes the tables
    benches/table.py PEERS --json FILE      takes what `compare --json FILE` measured; several files go together. Without accuracy, unless
    benches/table.py PEERS --errors OURS THEIRS    gives what `cargo bench --bench peers -- --accuracy` and PEERS/accuracy.py printed
    benches/table.py PEERS --out FILE       writes another file, for another machine

The share of the limit is the time that the machine needs at least, moving the bytes or doing the products that the work
cannot do without, divided by the time that was measured. What the machine gives is measured as well (`limit.*` of the bench)."""
import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

# Bytes that one unit of work reads and writes at least: of the element type, and others. A row of softmax has 1,000 numbers.
BYTES = {r"^prune": (2, 0), r"^quantize": (1, 1), r"^dequantize": (1, 1),
         r"^fakequant": (2, 0), r"^observe": (1, 0), r"^batchnorm\.train": (3, 0), r"^batchnorm\.backward": (5, 0),
         r"^(batchnorm|layernorm)": (2, 0), r"^softmax": (2000, 0), r"^dropout": (2, 0.125), r"^kmeans": (2, 1)}

# Kilobytes that the bench's `limit.read.*` read again and again.
KEPT = (256, 1024, 4096, 16384, 65536)

# Peers that goals name beside the fastest.
PARTICULAR = [(r"^prune\.magnitude", "l1_unstructured"), (r"^dropout\.forward", "torch"), (r"^distill", "every step"), (r"^sparse\.", "CSR|BSR")]


# What has to be known about the peers of a family.
NOTES = {"sparse": ["", "The goals are set against the fastest dense product of anyone, so that is the peer here. The sparse products of PyTorch and SciPy, which are",
                    "faster than those, stand in the last table."]}


def products(widths):
    return sum(a * b for a, b in zip(widths, widths[1:]))


def widths(text):
    return [int(width) for width in text.split("-")]


def multiply_adds(case):
    """Of one unit of work, or None."""
    if found := re.search(r"^engine\.\w+\.([\d-]+)", case):
        return products(widths(found[1]))
    if re.search(r"^gemm\.", case):
        return 1
    if found := re.search(r"^sparse\.f32\.(\d+)\.s(\d+)", case):
        return int(found[1]) ** 2 * (100 - int(found[2])) / 100
    if found := re.search(r"^train\.\w+\.([\d-]+)", case):
        w = widths(found[1])
        return 3 * products(w) - w[0] * w[1]
    if found := re.search(r"^distill\.([\d-]+)\.([\d-]+)", case):
        student = widths(found[2])
        return products(widths(found[1])) + 3 * products(student) - student[0] * student[1]
    return None


def limit_us(row, limits):
    """The least time of a row by what the machine gives, or None."""
    case, got = row["case"], limits[row["threads"]]
    size = 8 if ".f64" in case else 4
    if (each := multiply_adds(case)) is not None:
        kind, size = ("i8", 1) if re.match(r"engine\.int8|gemm\.i8", case) else (f"f{8 * size}", size)
        if case.endswith(".b1"):
            # Each weight is read once, from the cache that holds them all: a number, and its position where zeros are left out.
            read = each * (size + (2 if case.startswith("sparse") else 0))
            nearest = min(KEPT, key=lambda kilobytes: abs(math.log(1024 * kilobytes / read)))
            return max(each / got[kind], read / got["read"][nearest])
        return each * row["work"] / got[kind]
    for pattern, (elements, others) in BYTES.items():
        if re.search(pattern, case):
            rate = got["read"][KEPT[-1]] if case.startswith("observe") else got["copy"]
            return (elements * size + others) * row["work"] / rate
    return None


def limits(threads):
    """Bytes and multiply-adds per microsecond for each number of threads, the best of some rounds."""
    command = ["cargo", "bench", "--quiet", "--bench", "peers", "--", "--json", "--filter", "^limit", "--threads"]
    us_of, found = {t: {} for t in threads}, {}
    for t in 3 * threads:
        lines = subprocess.run([*command, str(t)], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
        for line in map(json.loads, (line for line in lines if line.startswith("{"))):
            us_of[t][line["case"]] = min(line["min_us"], us_of[t].get(line["case"], math.inf))
    for t, us in us_of.items():
        each = t * 20 * 84 * 256 * 512
        found[t] = {"read": {kilobytes: 2**26 / us[f"limit.read.{kilobytes}k"] for kilobytes in KEPT}, "copy": 2**27 / us["limit.copy"],
                    **{kind: each / us[f"limit.product.{kind}"] for kind in ("i8", "f32", "f64")}}
    return found


def time(us):
    if us is None:
        return "-"
    return f"{us / 1e3:,.0f} ms" if us >= 1e5 else f"{us / 1e3:,.2f} ms" if us >= 1e3 else f"{us:,.1f} us"


def row_text(row, limits):
    least = limit_us(row, limits)
    ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
    share = "-" if least is None or row["trimnet_us"] is None else f"{100 * least / row['trimnet_us']:.0f} %"
    possible = "-" if least is None or row["peer_us"] is None else f"{row['peer_us'] / least:.1f}"
    reached = {None: "-", True: "yes", False: "**no**"}[row["reached"]]
    return (f"| `{row['case']}` | {row['threads']} | {time(row['trimnet_us'])} | {row['peer'] or '-'} | {time(row['peer_us'])} | {ratio} "
            f"| {row['goal']:g} | {reached} | {share} | {possible} |")


def particular(rows):
    """Other peers than the fastest, which goals name: the fastest form of each."""
    lines = []
    for row in rows:
        for case, peer in PARTICULAR:
            times = [statistics.median(us) for name, us in row["rounds"].items() if us and re.search(peer, name)]
            if re.search(case, row["case"]) and times and row["trimnet_us"]:
                name = next(name for name, us in row["rounds"].items() if us and re.search(peer, name) and statistics.median(us) == min(times))
                lines.append(f"| `{row['case']}` | {row['threads']} | {time(row['trimnet_us'])} | {name} | {time(min(times))} "
                             f"| {min(times) / row['trimnet_us']:.2f} |")
    return lines


def errors(peers, files):
    """Test errors after training, by network: ours and theirs."""
    if files:
        texts = [file.read_text() for file in files]
    else:
        venv = subprocess.run([peers / "setup"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        commands = [["cargo", "bench", "--quiet", "--bench", "peers", "--", "--accuracy"], [f"{venv}/bin/python", peers / "accuracy.py"]]
        texts = [subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout for command in commands]
    ours, theirs = ({line["network"]: line for line in map(json.loads, (line for line in text.splitlines() if line.startswith("{")))} for text in texts)
    listed = lambda line: f"{', '.join(f'{error:.2f}' for error in line['errors'])} (mean {line['mean']:.2f} %)"
    return [f"| {network} | {line['epochs']} | {listed(line)} | {listed(theirs[network])} |" for network, line in ours.items() if network in theirs]


def processor():
    """Its name, its generation where that is known, and the best of the instruction sets that kernels are written for."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown processor"
    names = re.findall(r"model name\s*: (.*)", text)
    sets = [name for flag, name in [("avx512_vnni", "AVX-512 with VNNI"), ("avx2", "AVX2"), ("asimd", "NEON")] if re.search(rf"\b{flag}\b", text)]
    family = re.search(r"AuthenticAMD\s*cpu family\s*: (\d+)", text)
    generation = {"25 AVX2": " (Zen 3)", "25 AVX-512 with VNNI": " (Zen 4)", "26 AVX-512 with VNNI": " (Zen 5)"}
    known = generation.get(f"{family[1]} {sets[0]}", "") if family and sets else ""
    return " with ".join([*(name + known for name in names[:1]), *sets[:1]]) or "unknown processor"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", type=Path, help="the folder with `compare`")
    parser.add_argument("--json", type=Path, nargs="+", help="what `compare` wrote, instead of measuring")
    parser.add_argument("--errors", type=Path, nargs=2, help="what both sides printed about accuracy, instead of training")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", default="5")
    args = parser.parse_args()
    for path in [args.peers / "compare"] if not args.json else [*args.json, *(args.errors or [])]:
        if not path.is_file():
            parser.error(f"{path} is not there")
    files = args.json
    with tempfile.TemporaryDirectory() as folder:
        if not files:
            files = [Path(folder) / "all.json"]
            subprocess.run([args.peers / "compare", "--threads", args.threads, "--rounds", args.rounds, "--json", files[0]], check=True)
        parts = [json.loads(file.read_text()) for file in files]
    rows = list({(row["case"], row["threads"]): row for part in parts for row in part["rows"]}.values())
    if not rows:
        sys.exit("nothing was measured")
    found = limits(sorted({row["threads"] for row in rows}))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True).stdout.strip()
    versions = sorted({f"{peer.split()[0]} {version}" for row in rows for peer, version in row["versions"].items()})
    threads = ",".join(map(str, sorted({row["threads"] for row in rows})))
    rounds, seconds = (",".join(sorted({str(part[key]) for part in parts})) for key in ("rounds", "seconds"))
    command = f"compare --threads {threads} --rounds {rounds} --seconds {seconds} --json FILE"
    built = "commit of the table" if args.json else "commit"
    compared = [row for row in rows if row["ratio"] is not None]
    text = [
        "# Benchmarks", "",
        "Made by `benches/table.py PEERS`, never by hand. A ratio is the time of the fastest peer divided by the time of trimnet, both the",
        "medians of rounds in turn: above 1, trimnet is faster. The limit is what the machine gives at best, see below; a share above 100 %",
        "says that zeros were left out of products, that data stayed in the caches, or that the limit was measured in a slower moment. One row",
        "of a network is limited by reading its weights, which stay in the cache that holds them all.",
        "The largest ratio that the limit, as it was measured, allows stands last.", "",
        f"- machine: {processor()}, {parts[0]['processors']} processors, {parts[0]['system']} {parts[0]['machine']}",
        f"- begun: {', '.join(sorted({part['begin'] for part in parts}))}; {built} {commit}; plain build, no `target-cpu`",
        f"- command: `{command}`; limits measured when the table was written" + (", which may be another state of the machine" if args.json else ""),
        f"- peers: {', '.join(versions)}",
        f"- {sum(row['reached'] for row in compared)} of {len(rows)} goals reached, {len(rows) - len(compared)} not compared", "",
        "| threads | copy, read + write | i8 products | f32 | f64 | read from " + " | ".join(f"{kilobytes / 1024:g} MB" for kilobytes in KEPT) + " |",
        "|---|---|---|---|---|" + "---|" * len(KEPT),
    ]
    for t, got in found.items():
        text.append(f"| {t} | {got['copy'] / 1e3:.1f} GB/s | {2 * got['i8'] / 1e3:.0f} GOP/s | {2 * got['f32'] / 1e3:.0f} GFLOP/s "
                    f"| {2 * got['f64'] / 1e3:.0f} GFLOP/s | {' | '.join(f'{rate / 1e3:.1f} GB/s' for rate in got['read'].values())} |")
    text += ["", "How time grows with size: [per number](growth-elements.svg), [per epoch](growth-training.svg)."]
    families = list(dict.fromkeys(row["case"].split(".")[0] for row in rows))
    for family in families:
        text += ["", f"## {family}", *NOTES.get(family, []), "", "| case | threads | trimnet | fastest peer | its time | ratio | goal | reached | share of the limit | at most |",
                 "|---|---|---|---|---|---|---|---|---|---|"]
        text += [row_text(row, found) for row in rows if row["case"].split(".")[0] == family]
    text += ["", "## Peers that goals name beside the fastest", "", "| case | threads | trimnet | peer | its time | ratio |", "|---|---|---|---|---|---|"]
    text += particular(rows)
    if args.errors or not args.json:
        text += ["", "## Accuracy", "", "Test errors on MNIST in percent, five seeds, Adam 1e-3, batches of 128.", "",
                 "| network | epochs | trimnet | PyTorch |", "|---|---|---|---|", *errors(args.peers, args.errors)]
    args.out.write_text("\n".join(text) + "\n")
    print(f"{args.out}: {len(rows)} rows")


if __name__ == "__main__":
    main()
