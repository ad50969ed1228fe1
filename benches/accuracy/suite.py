"""Runs every peer on every set with every seed, the most telling first, and leaves out what the results already hold.

    suite.py --data out/benches/data --out out/benches/peers.jsonl [--only ha_intent_hard] [--peers lora,full] [--list]

It may be stopped and started again at any time: one run of `peers.py` is one line of the results.
"""

import argparse
import json
import pathlib
import subprocess
import sys

CLASSIFIED = {"ha_intent_hard": 20, "snips_intent": 8, "clinc150": 8, "sms_spam": 5}
TAGGED = {"snips_slots": 8, "wnut17": 5}
LONGER = {"peft-prompt": 1.5, "peft-prefix": 1.5}
KEEP_EPOCHS = ("ha_intent_hard",)
UNTRAINED = ("zero-shot", "few-shot", "probe")
TRAINED = ("peft-prefix", "lora", "full", "peft-prompt")
DETERMINISTIC = ("zero-shot", "probe")
SEEDS = (0, 1, 2)


def planned():
    """Every run as set, task, peer, seed and epochs: first the untrained peers, then one seed of all, then the others."""
    for peer in UNTRAINED:
        for data in CLASSIFIED:
            for seed in (0,) if peer in DETERMINISTIC else SEEDS:
                yield data, "classify", peer, seed, 0
    for data in TAGGED:
        yield data, "tag", "probe", 0, 0
    for seed in SEEDS:
        for data, epochs in CLASSIFIED.items():
            for peer in TRAINED:
                longer = 1 if data in KEEP_EPOCHS else LONGER.get(peer, 1)
                yield data, "classify", peer, seed, round(epochs * longer)
        for data, epochs in TAGGED.items():
            for peer in TRAINED:
                if peer != "peft-prompt":
                    yield data, "tag", peer, seed, epochs


def done(path):
    """The set, peer and seed of every line of the results."""
    if not path.exists():
        return set()
    with open(path, encoding="utf-8") as file:
        runs = [json.loads(line) for line in file if line.strip()]
    return {(run["data"], run["peer"], run["seed"]) for run in runs}


def main():
    """Runs what is missing, one after the other."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", required=True, type=pathlib.Path)
    arguments.add_argument("--out", required=True, type=pathlib.Path)
    arguments.add_argument("--only", help="sets, separated by commas")
    arguments.add_argument("--peers", help="peers, separated by commas")
    arguments.add_argument("--list", action="store_true", help="say what is missing and run nothing")
    options = arguments.parse_args()
    sets = options.only.split(",") if options.only else [*CLASSIFIED, *TAGGED]
    peers = options.peers.split(",") if options.peers else [*UNTRAINED, *TRAINED]
    program = pathlib.Path(__file__).parent / "peers.py"
    for data, task, peer, seed, epochs in planned():
        if data not in sets or peer not in peers or (data, peer, seed) in done(options.out):
            continue
        command = [sys.executable, str(program), "--data", str(options.data / data), "--task", task, "--peer", peer]
        command += ["--seed", str(seed), "--epochs", str(epochs), "--out", str(options.out)]
        if options.list:
            print(data, peer, seed, epochs)
            continue
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
