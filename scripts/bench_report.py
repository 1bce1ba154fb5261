"""The report of scripts/bench_splits: Markdown from the JSON of `shoal bench`. Measures nothing and decides nothing."""
import os
import platform
from pathlib import Path

STRATEGIES = ["single", "static-layer", "adaptive-layer", "head", "hybrid"]
TARGET = 0.92  # of the bound, that adaptive over static is to reach

# The published table: strategy, devices, tok/s, ms, efficiency as printed.
PUBLISHED = [
    ("one device", "single", 1, 12, 83, None),
    ("static layer split", "static-layer", 2, 18, 56, 0.67),
    ("adaptive layer split", "adaptive-layer", 2, 22, 45, 0.82),
    ("head split", "head", 3, 26, 38, 0.74),
    ("adaptive hybrid", "hybrid", 3, 31, 32, 0.88),
]


def report(kept, clusters, models):
    """The whole report. `kept`: by a run's name what `bench_splits` kept of it."""
    parts = [head(kept), summary(kept, clusters, models)]
    parts.append(efficiency(kept))
    parts.append(neighbours(kept))
    parts.append(published(kept))
    parts.append("## Every run\n")
    for cluster in clusters:
        for model in models:
            run = kept.get(name(cluster, model))
            if run:
                parts.append(one_run(name(cluster, model), run))
    return "\n".join(part for part in parts if part)


def name(cluster, model):
    return f"{cluster}-{'-'.join(model)}"


def head(kept):
    labs = [run for run in kept.values() if run["lab"]]
    checks = {run["check"] for run in labs if run["check"]}
    beyond = sum("beyond" in check for check in checks)
    network = (
        f"{len(labs)} of {len(kept)} runs had each board in a network namespace, with links of the cluster file's rates and "
        f"delays (`scripts/lab/lab`); {beyond} of {len(checks)} checks of these links missed a round trip by over 10 %, "
        "which is said beside the run."
        if labs
        else "The network was this machine's own loopback: the links of the cluster files were **not** played."
    )
    late = sorted(key for key, run in kept.items() if (emulation(run) or {}).get("kept_time") is False)
    lost = (
        f" **Time was not kept** in {', '.join(late)}: there the machine was slower than the boards, and the figures are its "
        "own." if late else ""
    )
    busy = (
        " Where links missed their profiles or time was not kept, this machine was busy or too small: such rows tell how the "
        "report looks, and are to be made again on an idle one before they are quoted." if late or (labs and beyond) else ""
    )
    return f"""# Static against adaptive splits

Made by `scripts/bench_splits` (`--quick` for small models and one round) on {os.cpu_count()} processors
({platform.machine()}), which play the boards of `profiles/clusters/*.toml`. Nothing here was measured on a board. Grade (b) is
real arithmetic with all clocks slowed, (c) is the real protocol and the network with the arithmetic slept; times are divided by
the slowing. {network}{lost}{busy}

**One stream** is the time between two tokens of a single request; **N streams** is the rate over N requests at once. They are
never mixed: figures of one stream are of the plan that is best for latency, figures of several of the plan that is best for
throughput. **Efficiency** is the rate ÷ the sum of the rates of the used boards, each alone at as many streams. In brackets stands
what was predicted, and by how much the prediction is off.
"""


def summary(kept, clusters, models):
    rows = ["## Adaptive over static, aggregate\n"]
    rows.append(
        "The bound is Σs ÷ (n · min s), with s the rate of each board alone at as many rows a step as the pipeline has: what the"
        "\nbest split of layers gains over the equal one when nothing else limits. The equal split's output head and remainders make"
        "\nit unequal even on equal boards, so that adaptive may gain more. *Simulated* is the same ratio in the discrete-event"
        "\nsimulator, which has the links.\n"
    )
    rows.append("| cluster | model | grade | streams | static tok/s | adaptive tok/s | adaptive ÷ static | bound | of the bound | simulated | prediction off by, median (worst) |")
    rows.append("|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for cluster in clusters:
        for model in models:
            run = kept.get(name(cluster, model))
            if run and both(run):
                rows.append(ratio_row(cluster, model, run))
    return "\n".join(rows) + "\n"


def both(run):
    """Whether both layer splits are among the strategies."""
    return all(strategy(run, wanted) for wanted in ["static-layer", "adaptive-layer"])


def ratio_row(cluster, model, run):
    streams = most_streams(run)
    static, adaptive = (tps(strategy(run, wanted), streams) for wanted in ["static-layer", "adaptive-layer"])
    ratio = static and adaptive and adaptive / static
    limit = bound(run, streams)
    simulated = run["simulated"]
    in_simulator = (
        simulated["static-layer"] and simulated["adaptive-layer"] and simulated["adaptive-layer"] / simulated["static-layer"]
    )
    reached = ratio and limit and ratio / limit
    cells = [
        title(cluster), " ".join(model), grade(run), str(streams),
        number(static) if static else "does not fit", number(adaptive),
        f"{ratio:.2f}" if ratio else "—", f"{limit:.2f}" if limit else "—",
        (f"{reached:.0%}" + ("" if reached >= TARGET else " (under 92 %)")) if reached else "—",
        f"{in_simulator:.2f}" if in_simulator else "—",
        error_text(run),
    ]
    return "| " + " | ".join(cells) + " |"


def error_text(run):
    prediction = run["report"]["prediction"]
    if prediction["median"] is None:
        return "—"
    return f"{prediction['median']:.1%} ({prediction['worst']:.0%})"


def bound(run, streams):
    """Σs ÷ (n · min s) at the rows a step of a pipeline over all boards has, or the nearest that is known."""
    alone = run["report"]["alone"]
    boards = len(run["report"]["devices"])
    if len(alone) < boards:
        return None
    rows = -(-streams // boards)

    def rate(entry):
        known = {a["streams"]: a["tps"] for a in entry["predicted"]["aggregate"]}
        return known[min(known, key=lambda at: abs(at - rows))]

    rates = [rate(entry) for entry in alone]
    return sum(rates) / (len(rates) * min(rates))


def efficiency(kept):
    rows = ["## Efficiency of three Pi 5 over gigabit\n"]
    rows.append("| model | grade | strategy | one stream, ms | one stream | 8 streams, tok/s | 8 streams |")
    rows.append("|---|---|---|--:|--:|--:|--:|")
    found = False
    limits = []
    for key, run in sorted(kept.items()):
        if run["cluster"] != "three-pi5" or key.startswith(("published", "neighbours")) or run["model"][0] == "stories":
            continue
        for wanted in ["head", "hybrid"]:
            row = strategy(run, wanted)
            if not row or not row["feasible"]:
                continue
            found = True
            cells = [
                " ".join(run["model"]), grade(run), wanted, beside(row, "decode_ms"),
                percent(at_streams(row, 1, "efficiency")), beside(row, 8), percent(at_streams(row, 8, "efficiency")),
            ]
            rows.append("| " + " | ".join(cells) + " |")
            limits.append(what_limits(run, row))
    if not found:
        return ""
    rows.append("\nTargets: 90 % at 8 streams, and 85 % for one stream of the 8B shape. What limits one stream:\n")
    return "\n".join(rows + limits) + "\n"


def what_limits(run, row):
    """Where one stream's time goes, of the rank that computes longest."""
    ranks = [rank for rank in row["ranks"] if rank["compute_ms"]]
    if not ranks or not row["decode_ms"]["p50"]:
        return ""
    longest = max(ranks, key=lambda rank: rank["compute_ms"])
    total, compute = row["decode_ms"]["p50"], longest["compute_ms"]
    sent = sum(value or 0 for value in row["bytes_per_token"].values())
    return (
        f"- {' '.join(run['model'])}, {row['strategy']}: of {number(total)} ms the busiest board computes {number(compute)} ms; the "
        f"other {number(total - compute)} ms are sums, hops and orders ({sent / 1e3:.0f} kB sent a token), none of it hidden yet."
    )


def neighbours(kept):
    rows = []
    for key, run in sorted(kept.items()):
        beside_it = run["report"].get("neighbours")
        if not beside_it:
            continue
        unit = "tok/s" if beside_it["figure"] == "tps" else "ms"
        gap = beside_it["gap"]
        verdict = "nothing was measured" if gap is None else (
            "it is the best of them" if gap == 0 else f"the best of them is {gap:.1%} better"
        )
        rows.append(
            f"**{title(run['cluster'])}**, {' '.join(run['model'])}, {grade(run)}: the chosen {beside_it['strategy']} plan beside "
            f"{len(beside_it['others'])} others; {verdict} (target 3 %).\n"
        )
        rows.append(f"| plan | {unit} | predicted |\n|---|--:|--:|")
        rows.append(f"| chosen | {number(beside_it['chosen'])} | {number(beside_it['chosen_predicted'])} |")
        for other in beside_it["others"]:
            rows.append(f"| {other['what']} | {number(other['measured'])} | {number(other['predicted'])} |")
        rows.append("")
    return "## The chosen plan among its neighbours\n\n" + "\n".join(rows) if rows else ""


def published(kept):
    two, three = kept.get("published-two"), kept.get("published-three")
    if not two or not three:
        return ""
    rows = ["## The published table\n"]
    rows.append(
        "The table that asked for this project names neither model nor board. Its one device (12 tok/s, 83 ms) is about a Pi 5 with"
        "\nLlama-3.2-1B at Q4_0, so its five rows are repeated with that: boards are Pi 5 over gigabit, "
        f"{grade(three)}.\n"
    )
    rows.append("| row | published tok/s | published ms | printed efficiency | tok/s ÷ (n · 12) | one stream, ms | one stream, tok/s | 8 streams, tok/s | efficiency at 8 |")
    rows.append("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for label, wanted, boards, rate, ms, printed in PUBLISHED:
        row = strategy(two if boards == 2 else three, wanted)
        if row:
            cells = [
                f"{label}, {boards}", str(rate), str(ms), percent(printed), percent(rate / (12 * boards)),
                beside(row, "decode_ms"), number(row["decode_tps"]), beside(row, 8), percent(at_streams(row, 8, "efficiency")),
            ]
            rows.append("| " + " | ".join(cells) + " |")
    single = strategy(three, "single")["decode_ms"]["p50"]
    static = strategy(two, "static-layer")
    rate = tps(static, 8)
    beyond = ", more than printed, since streams also share the weights' reading" if rate and rate > 18 else ""
    rows.append(f"""
Which cells no exact method can reach, and why:

- **Latencies of the layer splits, 56 and 45 ms.** Every published latency is 1000 ÷ tok/s, so one figure is printed twice. In an
  exact layer split each token passes all layers one after another, on one board after another: one stream takes as long as on one
  board (here {number(single)} ms), plus a hop for each border. Only the output head, which may be spread over boards whatever holds
  the layers, shortens it (here to {number(static['decode_ms']['p50'])} ms). 18 and 22 tok/s are rates over several streams: with 8 streams the two
  boards gave {number(tps(static, 8))} tok/s{beyond}.
- **Static against adaptive on two devices, 18 against 22.** On two equal boards both are the same split but for the output head.
  The gain of 22 ÷ 18 = 1.22 needs boards that differ: Σs ÷ (2 · min s) = 1.22 is a board 1.44 times as fast as the other. The
  unequal clusters above show such gains.
- **Efficiencies.** 67, 82, 74 and 88 % do not follow from the printed rates: 18, 22, 26 and 31 tok/s are 75, 92, 72 and 86 % of
  n · 12. 92 % of two boards' rate cannot be had by *one* stream of a layer split, of which one board rests while the other works:
  50 % is its most.
- **Head split, 38 ms, and hybrid, 32 ms, on three devices** are within the bound of 83 ÷ 3 = 27.7 ms, so exact methods may reach
  them: 38 ms leaves 10.3 ms for 32 sums (0.32 ms each), 32 ms leaves 4.3 ms (0.13 ms each), under the round trip of the links
  played here (0.22 ms) unless sums are hidden behind compute.
""")
    return "\n".join(rows)


def one_run(key, run):
    report = run["report"]
    chosen = ", ".join(f"{what}: {which}" for what, which in report["chosen"].items())
    out = [f"### {title(run['cluster'])}, {' '.join(run['model'])}\n"]
    out.append(
        f"{grade(run)}; medians of {report['rounds']} round(s), {report['decode']} tokens decoded. The planner would take, for "
        f"{chosen}. Predictions are off by {error_text(run)}."
    )
    if run["check"] and "beyond" in run["check"]:
        out.append(f"\nThe laboratory's links: {run['check']}.")
    counts = [entry["streams"] for entry in report["strategies"][0]["predicted"]["aggregate"] if entry["streams"] > 1]
    heads = "".join(f" {n} streams, tok/s | efficiency |" for n in counts)
    out.append(f"\n| strategy | one stream, ms | tok/s |{heads} prompt of 32, ms | sent/token |")
    out.append("|---|--:|--:|" + "--:|--:|" * len(counts) + "--:|--:|")
    reasons = []
    for row in report["strategies"]:
        if not row["feasible"]:
            reasons.append(f"- {row['strategy']}: {row['reason']}")
        sent = [value for value in row["bytes_per_token"].values() if value is not None]
        cells = [row["strategy"], beside(row, "decode_ms"), number(row["decode_tps"])]
        for n in counts:
            mark = "" if row["efficiency_basis"] == "measured" else "*"
            share = percent(at_streams(row, n, "efficiency"))
            cells += [beside(row, n), share + (mark if share != "—" else "")]
        ttft = row["prefill"][0]["ttft_ms"] if row["prefill"] else None
        cells += [number(ttft), f"{sum(sent) / 1e3:.1f} kB" if sent else "—"]
        out.append("| " + " | ".join(cells) + " |")
    if any(row["efficiency_basis"] in ("mixed", "predicted") for row in report["strategies"]):
        out.append("\n\\* against boards alone as predicted, not all of them measured alone.")
    if reasons:
        out.append("\n" + "\n".join(reasons))
    out.append(f"\n![{title(run['cluster'])}, {' '.join(run['model'])}](splits/{key}.svg)\n")
    return "\n".join(out)


def strategy(run, wanted):
    return next((row for row in run["report"]["strategies"] if row["strategy"] == wanted), None)


def emulation(run):
    return run["report"]["emulation"]


def grade(run):
    played = emulation(run)
    if not played:
        return "real"
    if played["grade"] == "dilated":
        return f"(b), slowed {played['dilation']:g} ×"
    return {"real": "(a)", "dry": "(c)"}[played["grade"]]


def title(cluster):
    file = Path(__file__).resolve().parents[1] / "profiles" / "clusters" / f"{cluster}.toml"
    for line in file.read_text().splitlines():
        if line.startswith("name ="):
            return line.split('"')[1]
    return cluster


def most_streams(run):
    return max(entry["streams"] for row in run["report"]["strategies"] for entry in row["predicted"]["aggregate"])


def at_streams(row, streams, field):
    return next((entry[field] for entry in row["aggregate"] if entry["streams"] == streams), None)


def tps(row, streams):
    return row and at_streams(row, streams, "tps")


def beside(row, what):
    """A figure with its prediction and its error: latency of one stream, or the rate of so many."""
    if what == "decode_ms":
        measured, predicted, error = (part["decode_ms"]["p50"] for part in (row, row["predicted"], row["error"]))
    else:
        parts = (row, row["predicted"], row["error"])
        measured, predicted, error = (at_streams(part, what, "tps") for part in parts)
    if measured is None:
        return "—"
    if predicted is None or error is None:
        return number(measured)
    return f"{number(measured)} ({number(predicted)}, {error:+.0%})"


def number(value):
    if value is None:
        return "—"
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f}"


def percent(value):
    return "—" if value is None else f"{value:.0%}"
