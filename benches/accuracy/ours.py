#!/usr/bin/env python3
"""Trains our methods on the capped files of subset.py and appends what they scored, and weigh, as JSON lines.

    ours.py --data out/benches/data/ha_intent_hard [--design NAME ...] --out out/benches/ours.jsonl

One line a seed, with the fields of peers.py. Seeds of one design are trained at once, as `preface train --seeds` does;
`cpu_seconds` is a seed's share. `shipped_bytes_i8` and `shipped_bytes_f32` are sizes of signed bundles as `preface pack` makes
them.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "target/release/preface"

# Options of `preface train` for each design; those of a task with tags have a token-linear head by themselves.
DESIGNS = {
    "prompt 16": ["--method", "prompt-tuning", "--tokens", "16"],
    "residual prompt 16": ["--method", "residual-prompt-tuning", "--tokens", "16"],
    "prefix top 2 x 4": ["--method", "prefix-tuning", "--layers", "top:2", "--tokens", "4"],
    "gated prefix top 2 x 4": ["--method", "gated-prefix-tuning", "--layers", "top:2", "--tokens", "4"],
    "prefix all x 2": ["--method", "prefix-tuning", "--tokens", "2"],
    "prefix all x 2, R-Drop": ["--method", "prefix-tuning", "--tokens", "2", "--consistency", "1"],
    "hidden prompts all x 2": ["--method", "hidden-prompts", "--tokens", "2"],
    "prefix all x 8": ["--method", "prefix-tuning", "--tokens", "8"],
    "prefix all x 8, R-Drop": ["--method", "prefix-tuning", "--tokens", "8", "--consistency", "1"],
    "prefix top 2 x 2": ["--method", "prefix-tuning", "--layers", "top:2", "--tokens", "2"],
    "prompt 8": ["--method", "prompt-tuning", "--tokens", "8"],
    "prefix all x 4, head rank 64": ["--method", "prefix-tuning", "--tokens", "4", "--head", "factored-linear", "--head-rank", "64"],
}


def train(data: pathlib.Path, options: list[str], epochs: int, seeds: int, folder: pathlib.Path) -> tuple[dict, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    files = [argument for name in ("train", "dev", "test") for argument in (f"--{name}", str(data / f"{name}.jsonl"))]
    command = [PROGRAM, "train", "--json", "--base", ROOT / "out/base", *files, *options, "--epochs", str(epochs)]
    command += ["--patience", "0", "--no-advice", "--threads", "1", "--seeds", str(seeds), "-o", folder / "adapter"]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(result.stdout), seconds


def packed_bytes(folder: pathlib.Path) -> dict[str, int]:
    """Sizes of the signed bundle by the numbers' format."""
    run = lambda *command: subprocess.run([PROGRAM, "--json", *command], check=True, stdout=subprocess.PIPE, text=True)
    run("keygen", "--no-passphrase", "-o", folder / "keys", "--name", "bench")
    options = ["--task", "bench", "--sequence", "1", "--key", folder / "keys/bench.key", "-o", folder / "x.preface"]
    pack = lambda dtype: json.loads(run("pack", folder / "adapter", "--dtype", dtype, *options).stdout)["bytes"]
    return {dtype: pack(dtype) for dtype in ("f32", "i8")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--design", action="append", choices=sorted(DESIGNS))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "out/benches/ours.jsonl")
    arguments = parser.parse_args()
    main_figure = "entity_f1" if "tags" in (arguments.data / "train.jsonl").open().readline() else "accuracy"
    for design in arguments.design or DESIGNS:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            result, seconds = train(arguments.data, DESIGNS[design], arguments.epochs, arguments.seeds, folder)
            sizes = packed_bytes(folder)
        with arguments.out.open("a") as out:
            for candidate in result["candidates"]:
                line = {
                    "data": arguments.data.name,
                    "peer": f"ours: {design}",
                    "seed": candidate["seed"],
                    "train_rows": sum(1 for _ in (arguments.data / "train.jsonl").open()),
                    "epochs": arguments.epochs,
                    "best_epoch": candidate["best_epoch"],
                    "dev": candidate["dev"][main_figure],
                    "test": candidate["test"][main_figure],
                    "test_macro_f1": candidate["test"].get("macro_f1", candidate["test"][main_figure]),
                    "trained_parameters": result["parameters"],
                    "shipped_bytes_f32": sizes["f32"],
                    "shipped_bytes_i8": sizes["i8"],
                    "cpu_seconds": seconds / arguments.seeds,
                }
                out.write(json.dumps(line) + "\n")
                out.flush()


if __name__ == "__main__":
    main()
