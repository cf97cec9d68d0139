#!/usr/bin/env python3
"""Comparisons of training recipes: the same model trained in several ways (arms) with several seeds.

    bench/experiments.py precision --fathom build/release/src/fathom --out out/experiments [--tokens 10000000] [--seeds 1,2,3] \
        [--arms f32,bf16] [--data FILE --val-data FILE] [--jobs 1] [--threads T] [--report-only]

Each run is a `fathom train` into OUT/EXPERIMENT/ARM-seedN; all arms of one seed come before the next seed. Interrupted in any way, the
same command goes on where it was and skips what is finished. Prints two tables (markdown; mean and, in brackets, range over the seeds)
and writes OUT/EXPERIMENT/report.html with the curves. Experiments:
"""
import argparse
import ctypes
import fcntl
import hashlib
import html
import json
import math
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SEQ_LEN, BATCH_SIZE = 256, 8
# demo.sh's, with V3's weight of the MTP loss.
OPTIONS = {"seq-len": SEQ_LEN, "batch-size": BATCH_SIZE, "lr": 4e-3, "min-lr": 0, "schedule": "wsd", "decay-fraction": 0.28, "beta2": 0.98,
           "weight-decay": 0.1, "bias-update-speed": 0.02, "mtp-weight": 0.3}
DEMO = "models/shakespeare.config.json"
LOSSES = ["held_out", "train_tail"]
# With the demo's learning rate experts change faster than biases follow, and its bias steps are as large as the affinities' gaps.
BALANCED = {"lr": 2e-3, "bias-update-speed": 0.003}
# The demo's experts cut in three, the shared one's width as it was: active and total parameters are the demo's,
# but for the router's rows.
THIRDS = {"moe_intermediate_size": 32, "n_routed_experts": 48, "num_experts_per_tok": 6, "n_shared_experts": 3,
          "num_nextn_predict_layers": 0}  # without the MTP layer MaxVio is of the main layers
PRECISION = {
    "about": "linear layers in f32, bf16, FP8 in V3's tiles and FP8 with one scale a tensor", "tokens": 10_000_000,
    "references": ["f32", "bf16"], "measures": [*LOSSES, "held_out_f32"], "curves": ["loss", "val_loss", "loss_against"],
    "probes": ["score"], "arms": {name: {"options": {"precision": name}} for name in ("f32", "bf16", "fp8", "fp8-per-tensor")}}

# config: changes to the base's config.json; options: of fathom train; an arm's come on top of the experiment's. references: arms that the
# losses of the others are set against; probes: what else is asked of each trained model.
EXPERIMENTS = {
    "precision": PRECISION,
    "precision-micro": {
        **PRECISION, "about": "the same in a larger shape, that of bench/peers/micro.json", "tokens": 4_000_000, "seeds": "1",
        "base": "bench/peers/micro.json", "config": {"vocab_size": 258, "bos_token_id": 256, "eos_token_id": 257},
        "options": {"lr": 2e-3}},  # twice as wide
    "balance": {
        "about": "loss-free balancing, balance loss (of two weights) or neither, 64 experts of which 6 are used", "tokens": 5_000_000,
        "config": {**THIRDS, "n_routed_experts": 64},
        "options": BALANCED,
        "references": ["aux"], "measures": [*LOSSES, "val_max_vio", "val_max_vio_half", "max_vio", "max_vio_half", "max_vio_tail", "max_vio_sum",
                                             "max_vio_sum_half", "starved"],
        "curves": ["loss", "val_loss", "max_violation"],
        "arms": {"bias": {"options": {"balance": "bias"}}, "aux": {"options": {"balance": "aux"}},
                 "aux-strong": {"options": {"balance": "aux", "balance-alpha": 0.01}}, "none": {"options": {"balance": "none"}}}},
    "experts": {
        "about": "fine or coarse experts, a shared one or none, groups or free choice; active parameters equal", "tokens": 3_000_000,
        "config": THIRDS, "options": BALANCED,
        "references": ["fine"], "measures": [*LOSSES, "max_vio_tail"], "curves": ["loss", "val_loss", "max_violation"],
        "arms": {
            "fine": {},
            # One of 8 would leave the router without a gradient: the weights of the chosen are normalised, and one alone is always 1.
            "coarse": {"config": {"moe_intermediate_size": 96, "n_routed_experts": 16, "num_experts_per_tok": 2, "n_shared_experts": 1}},
            "no-shared": {"config": {"n_routed_experts": 51, "num_experts_per_tok": 9, "n_shared_experts": 0}},
            "node-limited": {"config": {"n_group": 4, "topk_group": 2}}}},
    "mtp": {
        "about": "with and without multi-token prediction", "tokens": 3_000_000,
        "references": ["without"], "measures": [*LOSSES, "acceptance", "acceptance_held_out"], "curves": ["loss", "val_loss"],
        "arms": {"mtp": {"probes": ["bench", "drafts"]},
                 "without": {"config": {"num_nextn_predict_layers": 0}, "options": {"mtp-weight": 0}}}},
}


def fail(message, status=1):
    print(f"{pathlib.Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(status)


class Run:
    """One arm with one seed. A task is a command whose stdout becomes a file, and is done once that file is there."""

    def __init__(self, folder, arm, seed):
        self.arm, self.seed, self.name = arm, seed, f"{arm}-seed{seed}"
        self.folder = folder / self.name
        self.log = folder / f"{self.name}.log"
        self.tasks = {}

    def next_task(self):
        return next((name for name in self.tasks if not (self.folder / name).exists()), None)

    def load(self):
        self.settings = json.loads((self.folder / "run.json").read_text())
        self.steps = [json.loads(line) for line in (self.folder / "train.jsonl").read_text().splitlines()]

    def column(self, key):
        return [(step["step"], step[key]) for step in self.steps if key in step and "skipped" not in step]

    def tail(self, key, part=0.1):
        """Of the last tenth of the steps, or another part of them."""
        return [value for step, value in self.column(key) if step > (1 - part) * self.steps[-1]["step"]]


# ---- Training

def warmup_of(steps):
    return min(60, steps // 5)


def arm_of(experiment, name):
    arm = experiment["arms"][name]
    base = json.loads((ROOT / experiment.get("base", DEMO)).read_text())
    steps = experiment["steps"]
    schedule = {"steps": steps, "warmup": warmup_of(steps), "val-every": max(1, steps // 20)}
    return {"config": {**base, **experiment.get("config", {}), **arm.get("config", {})},
            "options": {**OPTIONS, **schedule, **experiment.get("options", {}), **arm.get("options", {})}}


def count_parameters(fathom, config_path):
    process = subprocess.run([fathom, "inspect", config_path, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if process.returncode != 0:
        fail(process.stderr.strip() or f"{fathom} inspect failed")
    parameters = json.loads(process.stdout)["parameters"]
    return {key: parameters[key] for key in ("active", "total")}


def write_atomically(path, text):
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def keep_settings(run, settings):
    """run.json, which tells later what was run. A run that has begun does not go on under other settings."""
    path = run.folder / "run.json"
    run.folder.mkdir(parents=True, exist_ok=True)
    if (run.folder / "train.jsonl").exists():
        before = json.loads(path.read_text())
        other = [key for key in settings if key != "parameters" and before.get(key) != settings[key]]
        if other:
            fail(f"{run.folder} holds a run with other settings ({', '.join(other)}); give another --out", 2)
    write_atomically(path, json.dumps(settings, indent=1) + "\n")


def plan(run, arm, config_path, probes, options):
    threads = ["--threads", str(options.threads)]
    model = ["--model", str(run.folder)]
    settings = [text for name, value in arm["options"].items() for text in (f"--{name}", str(value))]
    steps = arm["options"]["steps"]
    commands = {
        "score": [options.fathom, "score", "--json", *threads, *model, "--text", options.val_data, "--window", str(SEQ_LEN + 1)],
        "bench": [options.fathom, "bench", "--json", *threads, *model, "--draft", "mtp", "--gen", "256", "--prompt", "0"],
        "drafts": [sys.executable, str(ROOT / "bench/draft_acceptance.py"), "--fathom", options.fathom, *model, "--text", options.val_data,
                   *threads, "--prompts", "50", "--depths", "1"]}
    run.tasks["trained.json"] = [
        options.fathom, "train", "--json", *threads, "--seed", str(run.seed), "--model-config", str(config_path), "--tokenizer", "bytes",
        "--out", str(run.folder), "--data", options.data, "--val-data", options.val_data, *settings, "--resume",
        "--save-every", str(max(1, min(200, steps // 5))), "--keep", "1"]
    run.tasks.update({f"{probe}.txt": commands[probe] for probe in probes})


def prepare(experiment, runs, folder, options):
    texts = {name: hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
             for name, path in (("data", options.data), ("val_data", options.val_data))}
    arms = {}
    for name in dict.fromkeys(run.arm for run in runs):
        path = folder / f"{name}.config.json"
        arm = arms[name] = arm_of(experiment, name)
        write_atomically(path, json.dumps(arm["config"], indent=2) + "\n")
        arm["parameters"] = count_parameters(options.fathom, path)
        print(f"{name}: {arm['parameters']['active']:,} of {arm['parameters']['total']:,} parameters active", file=sys.stderr)
    for run in runs:
        keep_settings(run, {**arms[run.arm], "seed": run.seed, **texts})
        probes = [*experiment.get("probes", []), *experiment["arms"][run.arm].get("probes", [])]
        plan(run, arms[run.arm], folder / f"{run.arm}.config.json", probes, options)


def end_with_parent():
    """SIGTERM, at which fathom saves and exits, should this script be killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def start(run, lock):
    task = run.next_task()
    with open(run.folder / f"{task}.partial", "w") as out, open(run.log, "a") as log:
        return subprocess.Popen(run.tasks[task], stdin=subprocess.DEVNULL, stdout=out, stderr=log, start_new_session=True,
                                pass_fds=[lock.fileno()], preexec_fn=end_with_parent if sys.platform == "linux" else None)


def finish_task(run, status):
    task = run.next_task()
    command = " ".join(run.tasks[task][:2])
    if status < 0:
        fail(f"{run.name}: {command} was ended by {signal.Signals(-status).name}; start again to go on")
    if status != 0:
        lines = run.log.read_text(errors="replace").splitlines() or ["it said nothing"]
        fail(f"{run.name}: {command} failed: {lines[-1]} ({run.log})")
    os.replace(run.folder / f"{task}.partial", run.folder / task)


def work(runs, side_by_side, lock):
    waiting = [run for run in runs if run.next_task()]
    done, running = len(runs) - len(waiting), {}
    try:
        while waiting or running:
            while waiting and len(running) < side_by_side:
                run = waiting.pop(0)
                running[run] = start(run, lock)
            time.sleep(0.05)
            for run, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                finish_task(run, process.returncode)
                if run.next_task():
                    running[run] = start(run, lock)
                    continue
                done += 1
                result = json.loads((run.folder / "trained.json").read_text())
                print(f"[{done}/{len(runs)}] {run.name}: loss {result['loss']:.4f}, held-out {result['val_loss']:.4f}", file=sys.stderr)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def lock_of(folder):
    """Held by the commands too: a script started again waits until those of a killed one have saved and ended."""
    lock = open(folder / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for an earlier script's runs in {folder}", file=sys.stderr)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


# ---- Tables

def summed_loads(run, part=0.1):
    """Tokens of each expert of each MoE layer, over the steps of the last part that tell them (one of 30 or so)."""
    return [[sum(loads) for loads in zip(*layers)] for layers in zip(*run.tail("expert_load", part))]


def max_vio_of_sums(run, part):
    return max(max(layer) / statistics.mean(layer) - 1 for layer in summed_loads(run, part))


def starved(run):
    """Share of the experts that get less than a tenth of the mean load."""
    few = [load < 0.1 * statistics.mean(layer) for layer in summed_loads(run) for load in layer]
    return 100 * statistics.mean(few)


def after_warmup(run, key):
    return [value for step, value in run.column(key) if step > warmup_of(run.steps[-1]["step"])]


def probe(run, name, pattern, scale=1):
    path = run.folder / f"{name}.txt"
    found = re.findall(pattern, path.read_text()) if path.exists() else []
    return scale * float(found[-1]) if found else None


MEASURES = {  # title, digits, of a run
    "held_out": ("held-out loss", 4, lambda run: run.column("val_loss")[-1][1]),
    "train_tail": ("training loss, last 10 %", 4, lambda run: statistics.mean(run.tail("loss"))),
    "held_out_f32": ("held-out loss, scored in f32", 4, lambda run: probe(run, "score", r'"loss":([^,}]*)')),
    "max_vio": ("MaxVio after warm-up", 2, lambda run: statistics.mean(after_warmup(run, "max_violation"))),
    "max_vio_tail": ("MaxVio, last 10 %", 2, lambda run: statistics.mean(run.tail("max_violation"))),
    "max_vio_half": ("MaxVio, second half", 2, lambda run: statistics.mean(run.tail("max_violation", 0.5))),
    "max_vio_sum": ("MaxVio of the summed loads, last 10 %", 2, lambda run: max_vio_of_sums(run, 0.1)),
    "max_vio_sum_half": ("MaxVio of the summed loads, second half", 2, lambda run: max_vio_of_sums(run, 0.5)),
    "val_max_vio": ("MaxVio over the held-out text, at the end", 2, lambda run: run.column("val_max_violation")[-1][1]),
    "val_max_vio_half": ("MaxVio over the held-out text, second half", 2,
                         lambda run: statistics.mean(run.tail("val_max_violation", 0.5))),
    "starved": ("experts below a tenth of the mean load, %", 1, starved),
    "acceptance": ("drafts accepted, %", 1, lambda run: probe(run, "bench", r'"acceptance":([^,}]*)', 100)),
    "acceptance_held_out": ("drafts accepted behind held-out text, %", 1, lambda run: probe(run, "drafts", r"\| 1 \| ([0-9.]+)%")),
}


def by_arm(runs):
    return {arm: [run for run in runs if run.arm == arm] for arm in dict.fromkeys(run.arm for run in runs)}


def pairs_with(reference, runs):
    """Each run with the reference arm's of the same seed, where that is there."""
    of_seed = {run.seed: run for run in runs if run.arm == reference}
    return [(run, of_seed[run.seed]) for run in runs if run.arm != reference and run.seed in of_seed]


def percent_above(pair, measure):
    value, other = map(measure, pair)
    return None if value is None or other is None else 100 * (value / other - 1)


def cell(values, digits, sign=""):
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    texts = [f"{value:{sign}.{digits}f}" for value in (statistics.mean(values), min(values), max(values))]
    return texts[0] if len(values) == 1 else f"{texts[0]} ({texts[1]} to {texts[2]})"


def tables(experiment, runs):
    measures = [MEASURES[name] for name in experiment["measures"]]
    compared = [m for m in measures if "loss" in m[0]]
    arms = by_arm(runs)
    references = [reference for reference in experiment["references"] if reference in arms]
    summary = [["arm", "seeds", "active", "parameters", *(title for title, _, _ in measures),
                *(f"{title}: % above {reference}" for reference in references for title, _, _ in compared)]]
    for arm, own in arms.items():
        count = own[0].settings["parameters"]
        row = [arm, str(len(own)), f"{count['active']:,}", f"{count['total']:,}"]
        row += [cell([measure(run) for run in own], digits) for _, digits, measure in measures]
        for reference in references:
            pairs = [pair for pair in pairs_with(reference, runs) if pair[0].arm == arm]
            row += [cell([percent_above(pair, measure) for pair in pairs], 2, "+") for _, _, measure in compared]
        summary.append(row)
    each = [["arm", "seed", *(title for title, _, _ in measures)]]
    each += [[run.arm, str(run.seed), *(cell([measure(run)], digits) for _, digits, measure in measures)] for run in runs]
    return [summary, each]


def markdown(table):
    head, *rows = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([head, "|" + " --- |" * len(table[0]), *rows])


# ---- Plots

COLORS = ["#1f6feb", "#c2410c", "#15803d", "#9333ea"]
TITLES = {"loss": "Training loss (nats a token)", "val_loss": "Held-out loss (nats a token)",
          "max_violation": "MaxVio (greatest load / mean - 1)"}
STYLE = """:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--dim:#5c6570;--line:#dfe3e8;--card:#f7f8fa}
@media(prefers-color-scheme:dark){:root{--bg:#0f1318;--fg:#e6e9ed;--dim:#9aa4b0;--line:#2b323b;--card:#171c23}}
body{margin:0 auto;max-width:1080px;padding:24px;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
h1{font-size:24px;margin:0}h2{font-size:16px;margin:0 0 8px}p,.legend{color:var(--dim);font-size:13px}
figure{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px 16px;margin:16px 0;overflow-x:auto}
svg{width:100%;height:auto;display:block}svg text{fill:var(--dim);font-size:11px}
.legend i{display:inline-block;width:14px;height:3px;margin:0 6px 3px 12px}
table{border-collapse:collapse;font-size:13px}td,th{text-align:left;padding:3px 12px 3px 0;border-bottom:1px solid var(--line)}"""


def thinned(points, most=240):
    """Means of neighbours."""
    size = -(-len(points) // most)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [tuple(map(statistics.mean, zip(*part))) for part in parts]


def relative(run, reference):
    return [(step, 100 * (loss / other - 1))
            for (step, loss), (_, other) in zip(thinned(run.column("loss"), 60), thinned(reference.column("loss"), 60))]


def band(curves):
    """(step, mean, least, greatest) of the seeds' curves."""
    return [(points[0][0], statistics.mean(values := [value for _, value in points]), min(values), max(values)) for points in zip(*curves)]


def ticks(low, high, count):
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = -int(-low // step)
    return [i * step for i in range(first, int(high // step) + 1)]


def chart(title, bands, colors):
    """A mean line and the band of its seeds for each arm; what lies above the values after a tenth of the steps is cut off."""
    width, height, left, right, top, bottom = 1000, 320, 52, 10, 10, 26
    first, end = (pick(point[0] for points in bands.values() for point in points) for pick in (min, max))
    shown = [point for points in bands.values() for point in points if point[0] >= first + 0.1 * (end - first)]
    low, high = min(point[2] for point in shown), max(point[3] for point in shown)
    if high - low < 1e-9:
        low, high = low - 0.1, high + 0.1
    x = lambda step: left + (step - first) / max(end - first, 1) * (width - left - right)
    y = lambda value: top + (1 - (min(max(value, low), high) - low) / (high - low)) * (height - top - bottom)
    path = lambda points: " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
    parts = []
    for value in ticks(low, high, 5):
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="var(--line)"/>'
                     f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    parts += [f'<text x="{x(step):.1f}" y="{height - 8}" text-anchor="{"end" if x(step) > width - 30 else "middle"}">{step:.6g}</text>'
              for step in ticks(first, end, 10) if end > first]
    legend = ""
    for name, points in bands.items():
        color = colors[name]
        outline = path([(p[0], p[2]) for p in points] + [(p[0], p[3]) for p in reversed(points)])
        parts.append(f'<polygon points="{outline}" fill="{color}" fill-opacity=".2"/>'
                     f'<polyline points="{path([p[:2] for p in points])}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        legend += f'<i style="background:{color}"></i>{html.escape(name)}'
    return (f'<figure><h2>{html.escape(title)}</h2><svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">'
            f'{"".join(parts)}</svg><div class="legend">{legend}</div></figure>')


def charts(experiment, runs):
    colors = dict(zip(experiment["arms"], COLORS))
    for curve in experiment["curves"]:
        if curve != "loss_against":
            bands = {arm: band([thinned(run.column(curve)) for run in own]) for arm, own in by_arm(runs).items()}
            yield chart(TITLES[curve], bands, colors)
            continue
        for reference in experiment["references"]:
            curves = {}
            for run, other in pairs_with(reference, runs):
                curves.setdefault(run.arm, []).append(relative(run, other))
            if curves:
                yield chart(f"Training loss: % above {reference}", {arm: band(own) for arm, own in curves.items()}, colors)


def html_table(table):
    rows = ["".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in row) for tag, row in zip(["th", *["td"] * len(table)], table)]
    return f"<figure><table><tr>{'</tr><tr>'.join(rows)}</tr></table></figure>"


def page(name, experiment, runs, all_tables):
    tokens = runs[0].steps[-1]["tokens"]
    recipe = [["arm", "config", "options"]]
    for arm, own in by_arm(runs).items():
        kept = own[0].settings
        recipe.append([arm, json.dumps(kept["config"]), " ".join(f"--{key} {value}" for key, value in kept["options"].items())])
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>fathom: {name}</title><style>{STYLE}</style></head><body>'
            f"<h1>{name}</h1><p>{html.escape(experiment['about'])}; {tokens:,} tokens a run. Lines: mean of the seeds; bands: their range.</p>"
            f"{''.join(charts(experiment, runs))}{''.join(map(html_table, [*all_tables, recipe]))}</body></html>\n")


# ---- Command line

class Parser(argparse.ArgumentParser):
    def error(self, message):
        fail(message, 2)


def list_of(kind):
    def parse(text):
        return list(dict.fromkeys(map(kind, text.split(","))))
    parse.__name__ = "list"
    return parse


def positive(text):
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def parse_options():
    about = __doc__ + "".join(f"    {name:16} {experiment['about']}\n" for name, experiment in EXPERIMENTS.items())
    parser = Parser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--fathom", default=str(ROOT / "build/release/src/fathom"))
    parser.add_argument("--out", default="out/experiments", type=pathlib.Path)
    parser.add_argument("--tokens", type=positive, help="learned from by each run (default: the experiment's)")
    parser.add_argument("--seeds", type=list_of(positive), help="such as 1,2,3 (default: the experiment's)")
    parser.add_argument("--arms", type=list_of(str), help="some of the experiment's (default: all)")
    parser.add_argument("--data", default=str(ROOT / "data/tinyshakespeare-train.txt"))
    parser.add_argument("--val-data", default=str(ROOT / "data/tinyshakespeare-val.txt"))
    parser.add_argument("--jobs", type=positive, default=1, help="runs side by side")
    parser.add_argument("--threads", type=positive, help="of each run (default: the CPUs, shared among the jobs)")
    parser.add_argument("--report-only", action="store_true", help="train nothing, show what is finished")
    options = parser.parse_args()
    experiment = EXPERIMENTS[options.experiment]
    options.threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    options.seeds = options.seeds or list_of(int)(experiment.get("seeds", "1,2,3"))
    options.arms = options.arms or list(experiment["arms"])
    unknown = [arm for arm in options.arms if arm not in experiment["arms"]]
    if unknown:
        parser.error(f"{options.experiment} has no arm {unknown[0]}; it has {', '.join(experiment['arms'])}")
    if not options.report_only:
        if not (os.path.isfile(options.fathom) and os.access(options.fathom, os.X_OK)):
            parser.error(f"--fathom {options.fathom}: no such program")
        for path in (options.data, options.val_data):
            if not os.path.isfile(path):
                parser.error(f"{path}: no such file")
    return options


def stop(*_):
    raise KeyboardInterrupt


def main():
    options = parse_options()
    experiment = dict(EXPERIMENTS[options.experiment])
    experiment["steps"] = max(2, -(-(options.tokens or experiment["tokens"]) // (SEQ_LEN * BATCH_SIZE)))
    folder = options.out / options.experiment
    runs = [Run(folder, arm, seed) for seed in options.seeds for arm in options.arms]
    if not options.report_only:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_of(folder)
        prepare(experiment, runs, folder, options)
        work(runs, options.jobs, lock)
    missing = [run.name for run in runs if not (run.folder / "trained.json").exists()]
    finished = sorted((run for run in runs if run.name not in missing), key=lambda run: (options.arms.index(run.arm), run.seed))
    if not finished:
        fail(f"no finished run under {folder}")
    if missing:
        print(f"not finished: {', '.join(missing)}", file=sys.stderr)
    for run in finished:
        run.load()
    if len({len(run.steps) for run in finished}) > 1:
        fail(f"{folder} holds runs of different lengths", 2)
    all_tables = tables(experiment, finished)
    print("\n\n".join(map(markdown, all_tables)))
    write_atomically(folder / "report.html", page(options.experiment, experiment, finished, all_tables))
    print(f"curves: {folder / 'report.html'}", file=sys.stderr)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        main()
    except KeyboardInterrupt:
        fail("stopped; the same command goes on", 130)
    except OSError as error:
        fail(error)
