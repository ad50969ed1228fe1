#!/usr/bin/env python3
"""Memory that a second process on MiniLM has of its own after an answer: ours beside its peers.

    make base && cargo build --release -p preface
    cargo build --release --manifest-path benches/peers/Cargo.toml --target-dir target/peers
    . out/env.sh && out/venv/bin/python benches/memory/run.py [--tokens 16] [--rounds 5]

Two processes of a program are started, each answers once and waits; the second one's /proc/PID/smaps_rollup is read then.
Private is what no other process shares, and dirty what of it was written: what another process costs. ONNX Runtime and
rten are the programs of benches/peers, without Python; both map weights that lie beside the graph. Ours is read with and
without its tokenizer; the peers have none.
"""

import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peers"))
import programs

FIELDS = {"Private_Dirty": "private, dirty", "Private_Clean": "private, clean", "Pss": "proportional"}


def memory(command: list) -> dict[str, float]:
    """MiB of the second of two processes that have answered."""
    with programs.Held(command), programs.Held(command) as second:
        text = pathlib.Path(f"/proc/{second.pid}/smaps_rollup").read_text()
    lines = (line.split(":") for line in text.splitlines()[1:])
    return {name: int(rest.split()[0]) / 1024 for name, rest in lines}


def main() -> None:
    arguments = programs.process_parser(__doc__, rounds=5).parse_args()
    print(f"| program | {', MiB | '.join(FIELDS.values())}, MiB |")
    print("|---|" + "---|" * len(FIELDS))
    with tempfile.TemporaryDirectory() as name:
        task = programs.Task(pathlib.Path(name), arguments.base)
        for name, command in programs.answerers(task, arguments.tokens, arguments.program).items():
            found = [memory(command) for _ in range(arguments.rounds)]
            cells = [programs.spread([one[field] for one in found], 1) for field in FIELDS]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
