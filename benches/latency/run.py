#!/usr/bin/env python3
"""An answer on MiniLM: the executor beside its peers, interleaved in one run.

    make base && cargo build --release -p preface
    cargo build --release --manifest-path benches/peers/Cargo.toml --target-dir target/peers
    . out/env.sh && out/venv/bin/python benches/latency/run.py [--tokens 8,32,128] [--rounds 7] [--threads 1]

Ours runs from token ids to the label, with a prefix of one token at one layer, whose work is too little to measure; the
peers run the base's graph from ids to hidden rows: ONNX Runtime with all its optimisations, and again from a file of
packed weights; rten with its weights as they lie in the map, and again laid out at load; tract's plan from an image of
ours. Each line is the median over rounds of the ratio ours : peer of the median run, with the least and the greatest.
"""

import json
import pathlib
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peers"))
import programs

RUNS = 40


def ours(options: list, tokens: int) -> dict:
    """The medians of `preface bench`, from ids."""
    report = json.loads(programs.preface("bench", "--json", *options, "--tokens", tokens, "--runs", RUNS))
    return {"cpu_ms": report["cpu_ms"]["p50"], "latency_ms": report["latency_ms"]["p50"], "allocations": report["allocations_per_run"]}


def contestants(task: programs.Task, threads: list) -> dict:
    """What is measured, by name: each takes a number of tokens; the first is ours. tract's plan has one thread."""

    def peer(program: str, model: pathlib.Path, tokens: int, *options) -> dict:
        """The medians of a peer's program."""
        command = [programs.PEERS / program, model, "--tokens", tokens, "--runs", RUNS]
        return json.loads(programs.output([*command, *threads, *options]))

    bundle = task.packed()
    executor, plan = task.options(task.image(), bundle), task.options(task.image("plan"), bundle)
    model = programs.external(task.base)
    return {
        "ours": lambda tokens: ours([*executor, *threads], tokens),
        "ONNX Runtime": lambda tokens: peer("onnxruntime", model, tokens),
        "ONNX Runtime, packed file": lambda tokens: peer("onnxruntime", model, tokens, "--packed"),
        "rten": lambda tokens: peer("rten", model, tokens),
        "rten, packed at load": lambda tokens: peer("rten", model, tokens, "--packed"),
        "tract's plan": lambda tokens: ours(plan, tokens),
    }


def table(measured: dict, tokens: int) -> None:
    """Prints a line for each peer."""
    own = measured.pop("ours")
    for name, found in measured.items():
        cells = [str(tokens), name]
        for key in ("cpu_ms", "latency_ms"):
            pairs = [(one[key], other[key]) for one, other in zip(own, found)]
            cells += [f"{statistics.median(one for one, _ in pairs):.2f}", f"{statistics.median(other for _, other in pairs):.2f}"]
            cells.append(programs.spread([one / other for one, other in pairs]))
        print(f"| {' | '.join(cells)} | {own[0]['allocations']:.0f} |", flush=True)


def main() -> None:
    parser = programs.parser(__doc__, rounds=7)
    parser.add_argument("--tokens", default="8,32,128")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    ratio = "ours : peer (least, greatest)"
    print(f"| tokens | peer | ours, CPU ms | peer, CPU ms | {ratio} | ours, wall ms | peer, wall ms | {ratio} | our allocations a run |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        task = programs.Task(pathlib.Path(name), arguments.base)
        entries = list(contestants(task, ["--threads", arguments.threads]).items())
        for tokens in map(int, arguments.tokens.split(",")):
            measured = {name: [] for name, _ in entries}
            for round in range(arguments.rounds):
                for entry, run in programs.turned(entries, round):
                    measured[entry].append(run(tokens))
            table(measured, tokens)


if __name__ == "__main__":
    main()
