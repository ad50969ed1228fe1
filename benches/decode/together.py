#!/usr/bin/env python3
"""What generating several texts at once gains on a decoder of 100 million numbers, on one thread.

    . out/env.sh && out/benches/llama/venv/bin/python benches/decode/together.py [--weights f32,f16,i8,i8a8,i4] [--rounds 3]

The environment and the model are those of run.py. The same texts as there, each at its place, in turn with one alone.
"""

import argparse
import pathlib
import tempfile

import run
import model as shape
import programs

TEXTS = [1, 2, 4, 8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=shape.ROOT / "out/benches/decoder")
    parser.add_argument("--weights", default=",".join(run.WEIGHTS))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    run.WEIGHTS = arguments.weights.split(",")
    folder = tempfile.TemporaryDirectory()
    own = run.Ours(arguments.model, pathlib.Path(folder.name))
    print("| weights | texts | tokens a second | CPU ms a token | tokens an amount of CPU : those of one text (least, greatest) |")
    print("|---|---|---|---|---|")
    for weights in run.WEIGHTS:
        rounds = [{texts: own.measure_together(weights, texts) for texts in TEXTS} for _ in range(arguments.rounds)]
        for texts in TEXTS:
            speeds, processor = zip(*(found[texts] for found in rounds))
            ratios = [found[1][1] / found[texts][1] for found in rounds]
            cells = [programs.spread(speeds, 1), programs.spread(processor), programs.spread(ratios)]
            print(f"| {weights} | {texts} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
