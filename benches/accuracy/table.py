"""Prints the runs of `peers.py`, and of any program that writes such lines, as one Markdown table a data set.

    table.py out/benches/peers.jsonl [MORE.jsonl ...]

Seeds are drawn together as mean ± standard deviation; of two lines with the same data, peer and seed the later counts.
"""

import collections
import json
import statistics
import sys

HEADER = "| peer | seeds | test | macro F1 | dev | trained | bytes f32 | bytes i8 | CPU s | epochs (best) |"
RULE = "|---" * 10 + "|"
ORDER = ("zero-shot", "few-shot", "probe", "peft-prompt", "peft-prefix", "lora", "full")


def spread(values, digits=1, scale=100):
    """Mean ± standard deviation, in hundredths unless told."""
    values = [value * scale for value in values]
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def read(paths):
    """The runs of each data set and peer, one a seed."""
    runs = collections.defaultdict(lambda: collections.defaultdict(dict))
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for line in file:
                run = json.loads(line)
                if run["test"] is not None:
                    runs[run["data"]][run["peer"]][run["seed"]] = run
    return runs


def row(peer, runs):
    """The table's row of one peer."""
    column = lambda name: [run[name] for run in runs]
    best = "/".join(str(epoch) for epoch in column("best_epoch"))
    epochs = "/".join(str(epochs) for epochs in sorted(set(column("epochs"))))
    return " | ".join([
        f"| {peer}",
        str(len(runs)),
        spread(column("test")),
        spread(column("test_macro_f1")),
        spread(column("dev")),
        f"{runs[0]['trained_parameters']:,}",
        f"{runs[0]['shipped_bytes_f32']:,}",
        f"{runs[0]['shipped_bytes_i8']:,}",
        f"{statistics.mean(column('cpu_seconds')):.0f}",
        f"{epochs} ({best}) |",
    ])


def main():
    """Prints the tables."""
    for data, peers in sorted(read(sys.argv[1:]).items()):
        rows = {seed["train_rows"] for peer in peers.values() for seed in peer.values()}
        print(f"\n### {data}, {'/'.join(str(count) for count in sorted(rows))} training rows\n\n{HEADER}\n{RULE}")
        known = {peer: place for place, peer in enumerate(ORDER)}
        for peer in sorted(peers, key=lambda peer: (known.get(peer, len(ORDER)), peer)):
            print(row(peer, [peers[peer][seed] for seed in sorted(peers[peer])]))


if __name__ == "__main__":
    main()
