#!/usr/bin/env python3
"""CPU time of an epoch of prompt tuning on a decoder: ours with the prompt behind the text, and PEFT's before it.

    make base && cargo build --release -p preface
    . out/env.sh && python3 benches/speed/decoder.py --peft-python PYTHON

Behind the text, the text's keys and values stay as they are, so they are computed once and cached; PEFT knows no such
place, and runs the whole text in every step. Both train 4 tokens and a linear head on stories260K with the first 304
messages of sms_spam that have more than 140 characters, 16 a step, on one thread, in turn within each round. An epoch of
ours is the difference between a training of several epochs and one of a single epoch, so it holds its evaluation on 16
rows; what the cache costs once is printed beside it.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "../shared/data/sms_spam/train.jsonl"
BASE = ROOT / "../shared/models/stories260K"
ROWS, LONGER_THAN, TOKENS, BATCH, EPOCHS = 304, 140, 4, 16, 21


def rows() -> list[dict]:
    with DATA.open(encoding="utf-8") as file:
        long = [row for row in map(json.loads, file) if len(row["text"]) > LONGER_THAN]
    return long[:ROWS]


def peft_epoch(rounds: int) -> float:
    """Seconds of an epoch, the median of some, in this process."""
    import peft
    import torch
    import transformers
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(BASE / "tokenizer.json"))
    base = transformers.LlamaModel.from_pretrained(BASE)
    config = peft.PromptTuningConfig(task_type=peft.TaskType.FEATURE_EXTRACTION, num_virtual_tokens=TOKENS)
    model = peft.get_peft_model(base, config).eval()
    head = nn.Linear(base.config.hidden_size, 2)
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW([*trained, *head.parameters()], lr=1e-2, fused=True)
    data = sorted(((tokenizer.encode(row["text"]), int(row["label"] == "spam")) for row in rows()), key=lambda row: len(row[0]))
    seconds = []
    for _ in range(rounds + 1):
        begun = time.process_time()
        for start in range(0, len(data), BATCH):
            batch = data[start : start + BATCH]
            width = max(len(ids) for ids, _ in batch)
            ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch])
            mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch])
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            last = TOKENS + mask.sum(1) - 1
            logits = head(hidden[torch.arange(len(batch)), last])
            loss = nn.functional.cross_entropy(logits, torch.tensor([label for _, label in batch]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        seconds.append(time.process_time() - begun)
    return statistics.median(seconds[1:])


def our_training(folder: pathlib.Path, epochs: int) -> float:
    """Seconds of a whole training."""
    command = [ROOT / "target/release/preface", "train", "--base", BASE, "--train", folder / "train.jsonl"]
    command += ["--dev", folder / "dev.jsonl", "--tokens", str(TOKENS), "--place", "after", "--pooling", "last"]
    command += ["--batch", str(BATCH), "--epochs", str(epochs), "--patience", "0", "--no-advice", "--threads", "1"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, "-o", folder / f"adapter-{epochs}"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def our_epoch() -> tuple[float, float]:
    """Seconds of an epoch, and of everything else."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        lines = [json.dumps(row) + "\n" for row in rows()]
        (folder / "train.jsonl").write_text("".join(lines))
        (folder / "dev.jsonl").write_text("".join(lines[:BATCH]))
        one, many = our_training(folder, 1), our_training(folder, EPOCHS)
    epoch = (many - one) / (EPOCHS - 1)
    return epoch, one - epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peft-python", default=str(ROOT / "out/peft/bin/python"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peft-epoch", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peft_epoch:
        print(peft_epoch(3))
        return
    ours, theirs, once = [], [], []
    for _ in range(arguments.rounds):
        epoch, rest = our_epoch()
        peer = subprocess.run([arguments.peft_python, __file__, "--peft-epoch"], check=True, stdout=subprocess.PIPE, text=True)
        ours.append(epoch)
        once.append(rest)
        theirs.append(float(peer.stdout.split()[-1]))
    ratios = [peer / own for peer, own in zip(theirs, ours)]
    print(f"an epoch: ours {statistics.median(ours):.3f} s, PEFT {statistics.median(theirs):.3f} s; once before it {statistics.median(once):.2f} s")
    print(f"PEFT : ours {statistics.median(ratios):.1f} ({min(ratios):.1f}, {max(ratios):.1f})")


if __name__ == "__main__":
    sys.exit(main())
