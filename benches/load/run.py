#!/usr/bin/env python3
"""Time from a task's file to a task that answers: our verified bundles beside ONNX Runtime's adapters.

    make base && cargo build --release -p preface
    . out/env.sh && out/venv/bin/python benches/load/run.py [--rounds 7]

Ours reads a bundle from disk, checks its signature and digests, decodes it, lays its prompt out and makes it the active
task. ONNX Runtime reads an .onnx_adapter that holds the same prefix in f32 and puts it among a run's options; it checks
nothing. Both are medians of many loads; each line is the median over rounds, with the least and the greatest.
"""

import json
import pathlib
import statistics
import sys
import tempfile
import time

import numpy
import onnxruntime

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peers"))
import programs

LOADS = 50
HIDDEN, LAYERS = 384, 6
# A name, the tokens of the prefix, its layers as we name them and their number, and how its numbers are kept.
CASES = [
    ("1 token at the top layer, i8", 1, "top:1", 1, "i8"),
    ("32 tokens at every layer, i8", 32, "all", LAYERS, "i8"),
    ("32 tokens at every layer, f16", 32, "all", LAYERS, "f16"),
]


def adapter(path: pathlib.Path, tokens: int, layers: int) -> None:
    """Writes ONNX Runtime's file of a prefix."""
    random = numpy.random.default_rng(0)
    found = onnxruntime.AdapterFormat()
    found.set_adapter_version(1)
    found.set_model_version(1)
    names = [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    values = [random.standard_normal((1, 12, tokens, HIDDEN // 12), numpy.float32) for _ in names]
    found.set_parameters({name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in zip(names, values)})
    found.export_adapter(str(path))


def theirs(path: pathlib.Path) -> float:
    """Microseconds of loading an adapter and naming it in a run's options."""
    times = []
    for _ in range(LOADS):
        begun = time.perf_counter()
        loaded = onnxruntime.LoraAdapter()
        loaded.Load(str(path))
        options = onnxruntime.RunOptions()
        options.add_active_adapter(loaded)
        times.append((time.perf_counter() - begun) * 1e6)
    return statistics.median(times)


def main() -> None:
    arguments = programs.parser(__doc__, rounds=7).parse_args()
    print("| prefix | ours, KB | theirs, KB | ours, us | theirs, us | ours : theirs |")
    print("|---|---|---|---|---|---|")
    for name, tokens, layers, count, dtype in CASES:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            task = programs.Task(folder, arguments.base, tokens, layers)
            bundle, other = task.packed(1, "--dtype", dtype), folder / "x.onnx_adapter"
            options = task.options(task.image(), bundle)
            adapter(other, tokens, count)
            own, found = [], []
            for _ in range(arguments.rounds):
                own.append(json.loads(programs.preface("bench", "--json", *options, "--ids", "--runs", 1))["load_us"])
                found.append(theirs(other))
            sizes = [f"{path.stat().st_size / 1e3:.1f}" for path in (bundle, other)]
            ratios = programs.spread([one / two for one, two in zip(own, found)])
            print(f"| {name} | {' | '.join(sizes)} | {programs.spread(own, 0)} | {programs.spread(found, 0)} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
