#!/usr/bin/env python3
"""Weights in fewer bits on MiniLM: the same base with its weights in f32, f16, i8, i8a8 and i4, interleaved in one run.

    make base && cargo build --release -p preface
    . out/env.sh && python3 benches/weights/run.py [--tokens 1,8,32,128] [--rounds 5]

One token is one row: what a decoder does for each token that it generates, bound by the bytes of the weights. Each line is
the median processor time of the rounds' median runs, and the median ratio to f32 with the least and the greatest. What
tasks lose is said by `preface compile --weights TYPE --evaluate BUNDLE=DATA --trust TRUST`.
"""

import json
import pathlib
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peers"))
import programs

RUNS = 60
WEIGHTS = ("f32", "f16", "i8", "i8a8", "i4")


def main() -> None:
    parser = programs.parser(__doc__, rounds=5)
    parser.add_argument("--tokens", default="1,8,32,128")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        task = programs.Task(folder, arguments.base)
        bundle = task.packed()
        images = {weights: folder / f"{weights}.base" for weights in WEIGHTS}
        for weights, image in images.items():
            programs.preface("compile", task.base, "-o", image, "--weights", weights)
        print("| tokens | weights | image, MiB | CPU ms | to f32 (least, greatest) |")
        print("|---|---|---|---|---|")
        for tokens in map(int, arguments.tokens.split(",")):
            times = {weights: [] for weights in WEIGHTS}
            for round in range(arguments.rounds):
                for weights, image in programs.turned(list(images.items()), round):
                    options = [*task.options(image, bundle), "--ids", "--tokens", tokens, "--runs", RUNS]
                    report = json.loads(programs.preface("bench", "--json", *options))
                    times[weights].append(report["cpu_ms"]["p50"])
            for weights, found in times.items():
                size = images[weights].stat().st_size / 2**20
                ratios = [one / other for one, other in zip(found, times["f32"])]
                cells = [tokens, weights, f"{size:.1f}", f"{statistics.median(found):.2f}", programs.spread(ratios)]
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
