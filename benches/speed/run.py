#!/usr/bin/env python3
"""CPU time and memory of a training step: ours and PEFT's, interleaved in one run.

    make base && cargo build --release -p preface-trainer --example step
    . out/env.sh && python3 benches/speed/run.py --peft-python PYTHON

PYTHON has torch, transformers and peft (`make peft` makes one at out/peft/bin/python). Every line of the table is the
median over rounds of the ratio PEFT : ours of CPU time a step, with the least and the greatest ratio; both programs
run in turn within each round, on one thread, on all-MiniLM-L6-v2 at batch 16 with 64 tokens of text.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]

# What is compared: a name, our options, PEFT's options.
CASES = [
    ("prompt tuning, 20 tokens, mean of all rows", ["--method", "prompt", "--tokens", "20"], ["--method", "prompt", "--tokens", "20"]),
    (
        "prompt tuning, 20 tokens, first row read",
        ["--method", "prompt", "--tokens", "20", "--pool", "first"],
        ["--method", "prompt", "--tokens", "20", "--pool", "first"],
    ),
    ("prefix tuning, 8 tokens, all layers", ["--method", "prefix", "--tokens", "8"], ["--method", "prefix", "--tokens", "8"]),
    (
        "prefix, 8 tokens, top 2 layers, lower layers cached",
        ["--method", "prefix", "--tokens", "8", "--layers", "top:2"],
        ["--method", "prefix", "--tokens", "8"],
    ),
    (
        "the same, first row read",
        ["--method", "prefix", "--tokens", "8", "--layers", "top:2", "--pool", "first"],
        ["--method", "prefix", "--tokens", "8", "--pool", "first"],
    ),
]


def run(command: list[str]) -> dict:
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}: {result.stderr.strip()}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peft-python", default=str(ROOT / "out/peft/bin/python"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    shared = ["--steps", str(arguments.steps), "--threads", "1"]
    print("| step | ours, ms | PEFT, ms | PEFT : ours (least, greatest) | peak memory, ours : PEFT, MiB |")
    print("|---|---|---|---|---|")
    for name, our_options, their_options in CASES:
        ours, theirs, ratios, memory = [], [], [], (0, 0)
        for _ in range(arguments.rounds):
            mine = run([str(ROOT / "target/release/examples/step"), *our_options, *shared])
            peer = run([arguments.peft_python, str(HERE / "peft_step.py"), *their_options, *shared])
            ours.append(statistics.median(mine["cpu_ms"]))
            theirs.append(statistics.median(peer["cpu_ms"]))
            ratios.append(theirs[-1] / ours[-1])
            memory = (mine["peak_rss_bytes"] >> 20, peer["peak_rss_bytes"] >> 20)
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"
        print(f"| {name} | {statistics.median(ours):.0f} | {statistics.median(theirs):.0f} | {spread} | {memory[0]} : {memory[1]} |", flush=True)


if __name__ == "__main__":
    main()
