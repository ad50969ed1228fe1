"""The programs that the benches set side by side, and what each of them is given."""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = ROOT / "target/release/preface"
PEERS = ROOT / "target/peers/release"
# Smaller tensors stay in the graph's own file.
SMALLEST_BYTES = 1024


def parser(text: str, rounds: int) -> argparse.ArgumentParser:
    """The arguments of a bench on MiniLM, which `text` describes."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=pathlib.Path, default=ROOT / "out/base")
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def process_parser(text: str, rounds: int) -> argparse.ArgumentParser:
    """The arguments of a bench of whole processes."""
    shared = parser(text, rounds)
    shared.add_argument("--tokens", type=int, default=16)
    shared.add_argument("--program", type=pathlib.Path, default=OURS, help="ours, where it is not the one of target/release")
    return shared


def output(command: list) -> str:
    """What a program prints; the bench ends where one fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def preface(*command) -> str:
    """What our program prints."""
    return output([OURS, *command])


def external(base: pathlib.Path) -> pathlib.Path:
    """The graph of `base` with its weights in a file beside it, as rten and ONNX Runtime map them; written once."""
    import onnx

    target = ROOT / "out/benches/external/model.onnx"
    if target.exists() and target.stat().st_mtime > (base / "model.onnx").stat().st_mtime:
        return target
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir(parents=True)
    model = onnx.load(base / "model.onnx")
    onnx.save_model(model, target, save_as_external_data=True, location="model.onnx.data", size_threshold=SMALLEST_BYTES)
    return target


class Task:
    """A base image and a signed prefix of `tokens` tokens at `layers`, in `folder`."""

    def __init__(self, folder: pathlib.Path, base: pathlib.Path, tokens: int = 1, layers: str = "top:1"):
        self.folder, self.base = folder, base
        labels = ["on", "off"]
        rows = [{"text": f"turn the light {labels[index % 2]} {index}", "label": labels[index % 2]} for index in range(16)]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = ["--train", folder / "train.jsonl", "--dev", folder / "train.jsonl"]
        method = ["--method", "prefix-tuning", "--tokens", tokens, "--layers", layers, "--epochs", "1", "--no-advice"]
        preface("train", "--base", base, *files, *method, "-o", folder / "adapter")
        preface("keygen", "--no-passphrase", "-o", folder / "keys", "--name", "bench")
        preface("trust", "new", "-o", folder / "trust", "--key", folder / "keys/bench.pub")

    def packed(self, sequence: int = 1, *options) -> pathlib.Path:
        """The bundle, signed with the bench's key."""
        bundle = self.folder / f"{sequence}.preface"
        key = ["--key", self.folder / "keys/bench.key"]
        preface("pack", self.folder / "adapter", "--task", "bench", "--sequence", sequence, *options, *key, "-o", bundle)
        return bundle

    def image(self, engine: str = "auto") -> pathlib.Path:
        """The base as `preface compile` lays it out for an engine."""
        image = self.folder / f"{engine}.base"
        preface("compile", self.base, "--engine", engine, "-o", image)
        return image

    def options(self, image: pathlib.Path, bundle: pathlib.Path) -> list:
        """What `preface bench` runs."""
        return ["--base", image, "--bundle", bundle, "--trust", self.folder / "trust"]


class Held:
    """A process that has answered once and waits, for as long as the block lasts."""

    def __init__(self, command: list):
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid

    def __enter__(self):
        if self.process.stdout.readline().strip() != "ready":
            sys.exit(f"{self.process.args[0]} could not answer")
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        _, status, used = os.wait4(self.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.process.stdout.close()
        self.processor_ms = (used.ru_utime + used.ru_stime) * 1e3


def answerers(task: Task, tokens: int, program: pathlib.Path) -> dict[str, list]:
    """Commands that answer once and wait, by name."""
    own = [program, "bench", "--hold", *task.options(task.image(), task.packed()), "--tokens", tokens]
    model = external(task.base)

    def peer(name: str, *options) -> list:
        return [PEERS / name, model, "--tokens", tokens, "--hold", *options]

    output([PEERS / "onnxruntime", model, "--packed", "--runs", 1])
    return {
        "ours, from ids": [*own, "--ids"],
        "ours, from text": own,
        "rten, mapped": peer("rten"),
        "rten, packed at load": peer("rten", "--packed"),
        "ONNX Runtime, weights beside the graph": peer("onnxruntime"),
        "ONNX Runtime, file of packed weights": peer("onnxruntime", "--packed"),
    }


def spread(ratios: list, digits: int = 2) -> str:
    """The median with the least and the greatest."""
    return f"{statistics.median(ratios):.{digits}f} ({min(ratios):.{digits}f}, {max(ratios):.{digits}f})"


def turned(items: list, by: int) -> list:
    """The items, begun at another one, so that none always runs behind the same."""
    by %= len(items)
    return items[by:] + items[:by]
