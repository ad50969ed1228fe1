#!/usr/bin/env python3
"""Processor time of an answer on MiniLM: the executor beside ONNX Runtime, interleaved in one run.

    make base && cargo build --release -p preface
    . out/env.sh && out/venv/bin/python benches/latency/run.py [--tokens 8,32,128] [--threads 1]

Ours runs from token ids to the label, with a prefix of one token at one layer, whose work is too little to measure; ONNX
Runtime runs the base's graph from ids to hidden rows with all its optimisations. Each line is the median over rounds of
the ratio ours : ONNX Runtime of the median processor time of a run, with the least and the greatest ratio.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import numpy
import onnxruntime

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "target/release/preface"
RUNS, WARM_UPS = 40, 5


def preface(*command) -> str:
    """What the program prints."""
    return subprocess.run([PROGRAM, *map(str, command)], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def prepare(folder: pathlib.Path, base: pathlib.Path) -> list:
    """The options of `preface bench` for a task with a prefix of one token."""
    labels = ["on", "off"]
    rows = [{"text": f"turn the light {labels[index % 2]} {index}", "label": labels[index % 2]} for index in range(16)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--train", folder / "train.jsonl", "--dev", folder / "train.jsonl"]
    method = ["--method", "prefix-tuning", "--tokens", "1", "--layers", "top:1", "--epochs", "1", "--no-advice"]
    preface("train", "--base", base, *files, *method, "-o", folder / "adapter")
    preface("keygen", "-o", folder / "keys", "--name", "bench")
    preface("trust", "new", "-o", folder / "trust", "--key", folder / "keys/bench.pub")
    key = ["--key", folder / "keys/bench.key"]
    preface("pack", folder / "adapter", "--task", "bench", "--sequence", "1", *key, "-o", folder / "x.preface")
    preface("compile", base, "-o", folder / "x.base")
    return ["--base", folder / "x.base", "--bundle", folder / "x.preface", "--trust", folder / "trust"]


def ours(files: list, tokens: int) -> dict:
    """The figures of `preface bench`."""
    return json.loads(preface("bench", "--json", *files, "--tokens", tokens, "--runs", RUNS))


def peer(session: onnxruntime.InferenceSession, tokens: int) -> float:
    """Milliseconds of processor time of a run, the median."""
    shape = (1, tokens)
    values = {"input_ids": numpy.full(shape, 2422, numpy.int64), "attention_mask": numpy.ones(shape, numpy.int64)}
    values["token_type_ids"] = numpy.zeros(shape, numpy.int64)
    feeds = {entry.name: values[entry.name] for entry in session.get_inputs()}
    times = []
    for _ in range(WARM_UPS + RUNS):
        begun = time.process_time()
        session.run(None, feeds)
        times.append((time.process_time() - begun) * 1e3)
    return statistics.median(times[WARM_UPS:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=pathlib.Path, default=ROOT / "out/base")
    parser.add_argument("--tokens", default="8,32,128")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(arguments.base / "model.onnx", options, providers=["CPUExecutionProvider"])
    print("| tokens | ours, ms | ONNX Runtime, ms | ours : ONNX Runtime (least, greatest) | allocations a run |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        files = prepare(pathlib.Path(name), arguments.base)
        for tokens in map(int, arguments.tokens.split(",")):
            own, other, allocations = [], [], 0
            for _ in range(arguments.rounds):
                figures = ours(files, tokens)
                own.append(figures["cpu_ms"]["p50"])
                allocations = figures["allocations_per_run"]
                other.append(peer(session, tokens))
            ratios = [one / two for one, two in zip(own, other)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"
            print(f"| {tokens} | {statistics.median(own):.2f} | {statistics.median(other):.2f} | {spread} | {allocations:.0f} |", flush=True)


if __name__ == "__main__":
    main()
