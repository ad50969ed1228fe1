#!/usr/bin/env python3
"""What a prefix costs each request: the same base with 32 tokens at every layer beside one token at the top layer.

    make base && cargo build --release -p preface
    . out/env.sh && out/venv/bin/python benches/prompt/run.py [--tokens 8,32,128] [--rounds 15]

A prefix of one token at one layer is too little work to measure, and stands for the base without a prompt, which answers
nothing. Each round runs both in turn; each line is the median over rounds of the ratio of the median run's processor
time, with the least and the greatest.
"""

import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peers"))
import programs

RUNS = 200
PREFIXES = {"one": (1, "top:1"), "all": (32, "all")}


def cpu_ms(options: list, tokens: int) -> float:
    """Processor time of the median run from ids."""
    size = ["--ids", "--tokens", tokens, "--runs", RUNS, "--processes", 1]
    return json.loads(programs.preface("bench", "--json", *options, *size))["cpu_ms"]["p50"]


def main() -> None:
    parser = programs.parser(__doc__, rounds=15)
    parser.add_argument("--tokens", default="8,32,128")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        entries = []
        for name, (tokens, layers) in PREFIXES.items():
            place = pathlib.Path(folder) / name
            place.mkdir()
            task = programs.Task(place, arguments.base, tokens, layers)
            entries.append((name, task.options(task.image(), task.packed())))
        print("| tokens of text | one token, CPU ms | 32 tokens at every layer, CPU ms | ratio (least, greatest) |")
        print("|---|---|---|---|")
        for tokens in map(int, arguments.tokens.split(",")):
            found = {name: [] for name, _ in entries}
            for round in range(arguments.rounds):
                for name, options in programs.turned(entries, round):
                    found[name].append(cpu_ms(options, tokens))
            one, all = found["one"], found["all"]
            ratios = programs.spread([second / first for first, second in zip(one, all)], 3)
            print(f"| {tokens} | {programs.spread(one)} | {programs.spread(all)} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
