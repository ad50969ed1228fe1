#!/usr/bin/env python3
"""Does the trainer say that a prompt is too small where it is, and nothing where it is not?

    advice.py --data ../shared/data

Mixes three unlike tasks (snips_intent, sms_spam, ha_intent_hard) into one file and trains a prompt of a few virtual tokens
with a label-text head, which has nearly nothing to learn of its own, on each task alone and on the mixture. Prints the
training loss of the last epoch and the advice.
"""

import argparse
import collections
import json
import pathlib
import random
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Rows of each label, in train and dev.
ROWS = {"snips_intent": (24, 8), "sms_spam": (72, 24), "ha_intent_hard": (12, 4)}


def first_of_each(path: pathlib.Path, limit: int) -> list[str]:
    """The first lines of each label, labels in order."""
    by_label = collections.defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        by_label[json.loads(line)["label"]].append(line)
    return [line for label in sorted(by_label) for line in by_label[label][:limit]]


def train(folder: pathlib.Path, name: str, arguments: argparse.Namespace) -> dict:
    """The result of `preface train` on a file."""
    command = [ROOT / "target/release/preface", "--json", "train", "--base", ROOT / "out/base"]
    command += ["--train", folder / f"{name}.train.jsonl", "--dev", folder / f"{name}.dev.jsonl", "--truncate"]
    command += ["--tokens", str(arguments.tokens), "--head", "label-text", "--epochs", "12"]
    command += ["--threads", str(arguments.threads), "-o", folder / name]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    epochs = [line for line in (folder / name / "metrics.jsonl").open() if '"kind":"epoch"' in line]
    return {"loss": json.loads(epochs[-1])["train_loss"], "dev": result["dev"]["accuracy"], "advice": result["advice"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "../shared/data")
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for place, part in enumerate(("train", "dev")):
            lines = {task: first_of_each(arguments.data / task / f"{part}.jsonl", rows[place]) for task, rows in ROWS.items()}
            mixed = [line for task in lines.values() for line in task]
            random.Random(0).shuffle(mixed)
            for task, own in (lines | {"mixed": mixed}).items():
                (folder / f"{task}.{part}.jsonl").write_text("\n".join(own), encoding="utf-8")
        for task in (*ROWS, "mixed"):
            found = train(folder, task, arguments)
            advice = " ".join(found["advice"]) or "nothing"
            print(f"{task}: training loss {found['loss']:.2f}, dev {found['dev']:.3f}; advice: {advice}", flush=True)


if __name__ == "__main__":
    main()
