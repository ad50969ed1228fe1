#!/usr/bin/env python3
"""Time from the start of a process to its first answer on MiniLM, the files in the page cache: ours beside its peers.

    make base && cargo build --release -p preface
    cargo build --release --manifest-path benches/peers/Cargo.toml --target-dir target/peers
    . out/env.sh && out/venv/bin/python benches/start/run.py [--tokens 16] [--rounds 15]

Ours verifies and loads a bundle on its way, with and without the tokenizer; ONNX Runtime and rten are the programs of
benches/peers, so no Python is started. Each round starts every program once, in turn; each line is the median over rounds
of the ratio ours : peer, with the least and the greatest, for either of ours.
"""

import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peers"))
import programs


def start(command: list) -> dict[str, float]:
    """Milliseconds until a fresh process has answered, by the clock, and of its processor time until it has ended."""
    begun = time.perf_counter()
    with programs.Held(command) as process:
        wall = (time.perf_counter() - begun) * 1e3
    return {"wall": wall, "processor": process.processor_ms}


def main() -> None:
    arguments = programs.process_parser(__doc__, rounds=15).parse_args()
    with tempfile.TemporaryDirectory() as name:
        task = programs.Task(pathlib.Path(name), arguments.base)
        commands = list(programs.answerers(task, arguments.tokens, arguments.program).items())
        found = {name: [] for name, _ in commands}
        for _, command in commands:
            start(command)
        for round in range(arguments.rounds):
            for name, command in programs.turned(commands, round):
                found[name].append(start(command))
    own = [name for name in found if name.startswith("ours")]
    print(f"| program | wall, ms | CPU, ms | {' : it, wall | '.join(own)} : it, wall |")
    print("|---|---|---|" + "---|" * len(own))
    for name, times in found.items():
        cells = [programs.spread([one[clock] for one in times], 1) for clock in ("wall", "processor")]
        for ours in own:
            cells.append(programs.spread([one["wall"] / other["wall"] for one, other in zip(found[ours], times)]))
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
