#!/usr/bin/env python3
"""Tokens a second of a decoder of 100 million numbers: ours, ONNX Runtime and llama.cpp, interleaved in one run.

    make base && cargo build --release -p preface
    python3 -m venv out/benches/llama/venv
    CMAKE_ARGS=-DGGML_NATIVE=ON out/benches/llama/venv/bin/pip install -r benches/decode/requirements.txt
    out/benches/llama/venv/bin/python benches/decode/model.py
    . out/env.sh && out/benches/llama/venv/bin/python benches/decode/run.py [--threads 1,2] [--rounds 5]

Each reads a prompt of 32 tokens and then takes the likeliest token 64 times, one after the other, with its cache; only
those are timed. ONNX Runtime runs the ONNX base in f32 with all its optimisations, its cache handed from step to step as
values of its own; ours runs images that `preface compile` makes of the same base, with weights in f32, f16, i8, i8a8 and i4,
and with a prompt of one token that `preface train` learned in one step; llama.cpp runs the same numbers in f16 and in
Q4_0, each with its weights laid out as is faster here. Prompts are read a token at a time: llama.cpp's AMX products of
several rows of Q4_0 end the process on some machines.
That it is the same model is checked before: how often both find the same token the likeliest, and how far their logits
lie apart.
"""

import argparse
import ctypes
import json
import pathlib
import statistics
import sys
import tempfile
import time

import llama_cpp
import numpy
import onnxruntime

import model as shape

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peers"))
import programs

PROMPT, STEPS = 32, 64
CONTEXT = 128
# GGUF files with whether llama.cpp lays their weights out again at load, as is faster on x86-64 with AVX-512 and AMX.
FILES = [("f16", False), ("q4_0", True)]
# How our images store weights.
WEIGHTS = ["f32", "f16", "i8", "i8a8", "i4"]


class OnnxRuntime:
    """The ONNX base with its cache in values of ONNX Runtime."""

    def __init__(self, folder: pathlib.Path, threads: int):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        self.caches = [f"{layer}.{part}" for layer in range(shape.LAYERS) for part in ("key", "value")]

    def start(self) -> None:
        """Forgets what was read."""
        empty = numpy.zeros((1, shape.KV_HEADS, 0, shape.HEAD), numpy.float32)
        self.past = [onnxruntime.OrtValue.ortvalue_from_numpy(empty) for _ in self.caches]
        self.read = 0

    def next(self, token: int) -> numpy.ndarray:
        """The logits after one more token, `[vocabulary]`."""
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", numpy.array([[token]]))
        binding.bind_cpu_input("attention_mask", numpy.ones((1, self.read + 1), numpy.int64))
        binding.bind_cpu_input("position_ids", numpy.array([[self.read]]))
        binding.bind_output("logits")
        for name, value in zip(self.caches, self.past):
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            binding.bind_output(f"present.{name}")
        self.session.run_with_iobinding(binding)
        logits, *self.past = binding.get_outputs()
        self.read += 1
        return logits.numpy()[0, 0]


class LlamaCpp:
    """A GGUF file, through the C interface."""

    def __init__(self, path: pathlib.Path, threads: int, laid_out: bool):
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_extra_bufts = laid_out
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = CONTEXT, 1, 1
        parameters.n_threads, parameters.n_threads_batch = threads, threads
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        self.batch = llama_cpp.llama_batch_init(1, 0, 1)

    def start(self) -> None:
        """Forgets what was read."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.read = 0

    def next(self, token: int) -> numpy.ndarray:
        """The logits after one more token, `[vocabulary]`."""
        batch = self.batch
        batch.n_tokens = 1
        batch.token[0], batch.pos[0], batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = token, self.read, 1, 0, True
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama.cpp cannot decode")
        self.read += 1
        found = llama_cpp.llama_get_logits(self.context)
        return numpy.ctypeslib.as_array(ctypes.cast(found, ctypes.POINTER(ctypes.c_float)), (shape.VOCABULARY,))


class Ours:
    """The program, which measures itself; its processor time is that of whole texts, their prompts among them."""

    def __init__(self, base: pathlib.Path, folder: pathlib.Path):
        target = " ".join(f"w{3 + index}" for index in range(STEPS))
        lines = [json.dumps({"text": f"w{3 + index}", "target": target}) for index in range(2)]
        data = folder / "data.jsonl"
        data.write_text("\n".join(lines) + "\n")
        method = ["--method", "prompt-tuning", "--tokens", 1, "--head", "generation", "--epochs", 1, "--no-advice"]
        programs.preface("train", "--base", base, "--train", data, "--dev", data, *method, "-o", folder / "adapter")
        programs.preface("keygen", "--no-passphrase", "-o", folder / "keys", "--name", "bench")
        programs.preface("trust", "new", "-o", folder / "trust", "--key", folder / "keys/bench.pub")
        key = ["--key", folder / "keys/bench.key"]
        programs.preface("pack", folder / "adapter", "--task", "bench", "--sequence", 1, *key, "-o", folder / "bundle")
        for weights in WEIGHTS:
            programs.preface("compile", base, "--weights", weights, "-o", folder / weights)
        self.folder, self.files = folder, ["--bundle", folder / "bundle", "--trust", folder / "trust"]

    def measure_together(self, weights: str, texts: int) -> tuple[float, float]:
        """Tokens a second of several texts at once on one thread, and milliseconds of processor time a token."""
        image = ["--base", self.folder / weights, "--together", texts]
        size = ["--ids", "--tokens", PROMPT, "--generate", STEPS, "--runs", 1, "--processes", 1]
        report = json.loads(programs.preface("bench", "--json", *image, *self.files, *size))
        return report["tokens_per_second"], report["cpu_ms_per_token"]

    def measure(self, weights: str, threads: int) -> tuple[float, float]:
        """Tokens a second, and milliseconds of processor time a token."""
        image = ["--base", self.folder / weights, "--threads", threads]
        size = ["--ids", "--tokens", PROMPT, "--generate", STEPS, "--runs", 3, "--processes", 1]
        report = json.loads(programs.preface("bench", "--json", *image, *self.files, *size))
        return report["tokens_per_second"], report["cpu_ms"]["p50"] / (PROMPT + STEPS)


def agreement(one, other, tokens: list[int]) -> str:
    """How often both find the same token the likeliest, and how far their logits lie apart."""
    found = []
    for engine in (one, other):
        engine.start()
        found.append(numpy.array([engine.next(token).copy() for token in tokens]))
    same = numpy.mean(found[0].argmax(1) == found[1].argmax(1))
    apart = numpy.linalg.norm(found[0] - found[1]) / numpy.linalg.norm(found[0])
    return f"{same:.0%} of {len(tokens)} likeliest tokens are the same, logits {apart:.1e} apart"


def measure(engine, prompt: list[int]) -> tuple[float, float]:
    """Tokens a second, and milliseconds of processor time a token."""
    engine.start()
    for token in prompt:
        token = int(engine.next(token).argmax())
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        token = int(engine.next(token).argmax())
    return STEPS / (time.perf_counter() - wall), (time.process_time() - processor) * 1e3 / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=shape.ROOT / "out/benches/decoder")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    prompt = numpy.random.default_rng(2).integers(3, shape.VOCABULARY, CONTEXT).tolist()
    folder = tempfile.TemporaryDirectory()
    own = Ours(arguments.model, pathlib.Path(folder.name))
    print("| threads | engine | tokens a second (least, greatest) | CPU ms a token | tokens a second : ONNX Runtime's (least, greatest) |")
    print("|---|---|---|---|---|")
    for threads in map(int, arguments.threads.split(",")):
        engines = {"ONNX Runtime, f32": OnnxRuntime(arguments.model, threads)}
        for name, laid_out in FILES:
            engines[f"llama.cpp, {name}"] = LlamaCpp(arguments.model / f"decoder.{name}.gguf", threads, laid_out)
        found = {name: [] for name in engines}
        first, *others = engines
        notes = [f"{name}: {agreement(engines[first], engines[name], prompt)}" for name in others]
        found |= {f"ours, {weights}": [] for weights in WEIGHTS}
        for _ in range(arguments.rounds):
            for name, engine in engines.items():
                found[name].append(measure(engine, prompt[:PROMPT]))
            for weights in WEIGHTS:
                found[f"ours, {weights}"].append(own.measure(weights, threads))
        for name, runs in found.items():
            speeds, processor = zip(*runs)
            ratios = [speed / other for speed, (other, _) in zip(speeds, found[first])]
            cells = [programs.spread(speeds, 1), f"{statistics.median(processor):.1f}", programs.spread(ratios)]
            print(f"| {threads} | {name} | {' | '.join(cells)} |", flush=True)
        print(*notes, sep="\n", flush=True)


if __name__ == "__main__":
    main()
