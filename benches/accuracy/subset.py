"""Writes the capped train, dev and test files that every peer and our own trainer share.

    subset.py --data ../shared/data --out out/benches/data

A set with labels keeps the first N rows of each label in file order, a tagged set its first N rows, or N rows at
even distances where the file is sorted by intent, as that of snips_slots is; the order of the file is kept. The test
file is never capped.
"""

import argparse
import collections
import json
import pathlib

CAPS = {
    "ha_intent_hard": {},
    "sms_spam": {"train_rows": 1500},
    "snips_intent": {"train_each": 200},
    "clinc150": {"train_each": 20, "dev_each": 10},
    "wnut17": {"train_rows": 1500},
    "snips_slots": {"train_spread": 1500},
}


def first_rows(rows, limit):
    """The first `limit` rows."""
    return rows[:limit]


def spread_rows(rows, limit):
    """`limit` rows at even distances, and the first row of each tag that none of them has."""
    places = {place * len(rows) // limit for place in range(limit)}
    seen = {tag for place in places for tag in rows[place]["tags"]}
    for place, row in enumerate(rows):
        if not seen.issuperset(row["tags"]):
            places.add(place)
            seen.update(row["tags"])
    return [rows[place] for place in sorted(places)]


def first_of_each(rows, limit):
    """The first `limit` rows of each label, in file order."""
    seen = collections.Counter()
    kept = []
    for row in rows:
        seen[row["label"]] += 1
        if seen[row["label"]] <= limit:
            kept.append(row)
    return kept


def proportional(rows, total):
    """The first rows of each label, so many of each that the labels keep their shares of about `total` rows."""
    counts = collections.Counter(row["label"] for row in rows)
    quota = {label: max(1, round(total * count / len(rows))) for label, count in counts.items()}
    seen = collections.Counter()
    kept = []
    for row in rows:
        seen[row["label"]] += 1
        if seen[row["label"]] <= quota[row["label"]]:
            kept.append(row)
    return kept


def capped(rows, part, caps):
    """The rows of one part, `train`, `dev` or `test`, under the caps of its set."""
    if f"{part}_each" in caps:
        return first_of_each(rows, caps[f"{part}_each"])
    if f"{part}_spread" in caps:
        return spread_rows(rows, caps[f"{part}_spread"])
    if f"{part}_rows" in caps:
        limit = caps[f"{part}_rows"]
        return proportional(rows, limit) if "label" in rows[0] else first_rows(rows, limit)
    return rows


def read_rows(path):
    """The rows of a JSON-lines file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def main():
    """Writes every set that `CAPS` names."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", required=True, type=pathlib.Path)
    arguments.add_argument("--out", required=True, type=pathlib.Path)
    options = arguments.parse_args()
    for name, caps in CAPS.items():
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        counts = []
        for part in ("train", "dev", "test"):
            rows = capped(read_rows(options.data / name / f"{part}.jsonl"), part, caps)
            counts.append(len(rows))
            with open(folder / f"{part}.jsonl", "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        print(name, *counts)


if __name__ == "__main__":
    main()
