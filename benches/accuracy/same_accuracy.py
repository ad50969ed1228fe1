#!/usr/bin/env python3
"""Processor time until the dev accuracy that PEFT ends with: ours beside PEFT's prompt and prefix tuning as they come.

    make base && cargo build --release -p preface && make peft      # and benches/accuracy/requirements.txt in out/peft
    . out/env.sh && out/peft/bin/python benches/accuracy/same_accuracy.py --data out/benches/data/snips_intent

PEFT starts its prompts as it does by default, from normal random numbers, and trains with the recipe of peers.py, whose rates
are far above the defaults of its examples: 20 tokens before the text, or 8 at every layer. Ours is the prefix that trainer/README.md
begins with, four tokens at the top two layers. Both read the same rows in batches of 16, on one thread, with the same head,
and are timed with every dev evaluation: PEFT from its first step, ours from the start of the process, so with reading the
base, writing the graph and caching the lower layers. What is to be reached is the best dev accuracy of the peer's run, where ours
or the peer is there for the first time. Where ours never is, that is said.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = ("peft-prompt", "peft-prefix")
TICKS = os.sysconf("SC_CLK_TCK")


def peer_curve(data: pathlib.Path, peer: str, seed: int, epochs: int, folder: pathlib.Path) -> list:
    """Seconds and dev accuracy of each epoch of a peer."""
    out = folder / "peer.jsonl"
    command = [sys.executable, HERE / "peers.py", "--data", data, "--task", "classify", "--peer", peer, "--no-test"]
    command += ["--seed", seed, "--epochs", epochs, "--out", out]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text().splitlines()[-1])["cpu_seconds_to_dev"]


def spent(pid: int) -> float:
    """Seconds of processor time that a process has taken."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def our_curve(data: pathlib.Path, seed: int, epochs: int, folder: pathlib.Path) -> list:
    """Seconds and dev accuracy of each epoch of ours: the time is read when an epoch's line is there."""
    adapter = folder / f"ours-{seed}"
    command = [ROOT / "target/release/preface", "train", "--base", ROOT / "out/base", "--train", data / "train.jsonl"]
    command += ["--dev", data / "dev.jsonl", "--method", "prefix-tuning", "--layers", "top:2", "--tokens", 4]
    command += ["--seed", seed, "--epochs", epochs, "--patience", 0, "--threads", 1, "--no-advice", "-o", adapter]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics, curve = adapter / "metrics.jsonl", []
    while process.poll() is None and len(curve) < epochs:
        time.sleep(0.02)
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        found = [json.loads(line)["dev"]["accuracy"] for line in lines if line.startswith('{"kind":"epoch"') and line.endswith("}")]
        now = spent(process.pid)
        curve += [[now, accuracy] for accuracy in found[len(curve) :]]
    if process.wait() != 0:
        sys.exit("preface train failed")
    return curve


def first(curve: list, accuracy: float) -> float | None:
    """Seconds after which an accuracy is reached."""
    return next((seconds for seconds, found in curve if found >= accuracy - 1e-4), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--epochs", type=int, default=12, help="of ours and of the peers")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    name = arguments.data.name
    print("| set | peer | its best dev | reached by ours | peer, CPU s | ours, CPU s | peer : ours (least, greatest) |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        ours = [our_curve(arguments.data, seed, arguments.epochs, folder) for seed in range(arguments.seeds)]
        for peer in PEERS:
            curves = [peer_curve(arguments.data, peer, seed, arguments.epochs, folder) for seed in range(arguments.seeds)]
            best = [max(accuracy for _, accuracy in curve) for curve in curves]
            pairs = [(first(theirs, goal), first(mine, goal)) for theirs, mine, goal in zip(curves, ours, best)]
            reached = [(theirs, mine) for theirs, mine in pairs if mine is not None]
            mean = f"{100 * statistics.mean(best):.1f}"
            if not reached:
                print(f"| {name} | {peer} | {mean} | 0 of {len(pairs)} | | | |", flush=True)
                continue
            theirs, mine = (statistics.median(column) for column in zip(*reached))
            ratios = [theirs / mine for theirs, mine in reached]
            spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}, {max(ratios):.1f})"
            print(f"| {name} | {peer} | {mean} | {len(reached)} of {len(pairs)} | {theirs:.0f} | {mine:.0f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
