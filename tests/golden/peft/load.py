#!/usr/bin/env python3
"""Does PEFT answer with folders that `preface export peft` wrote as it did with its own?

    load.py EXPORTED

EXPORTED holds folders NAME.TASK, NAME an adapter of expected.json and TASK the number of one of its tasks. Each is
loaded with PeftModel.from_pretrained on the base of that adapter. Prints one JSON object; exit 0 if all logits agree
to 1e-4 and all texts are the same. Runs on the Python of `make peft`.
"""

import json
import sys
import warnings
from pathlib import Path

sys.dont_write_bytecode = True
import make
import torch
from peft import PeftModel


def difference(found, expected):
    if isinstance(expected, str):
        return float(found != expected)
    if isinstance(expected, list):
        return max(difference(one, other) for one, other in zip(found, expected, strict=True))
    return abs(found - expected)


def main():
    warnings.filterwarnings("ignore")
    cases = json.loads((Path(__file__).parent / "expected.json").read_text())["cases"]
    differences = {}
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        name, task = folder.name.rsplit(".", 1)
        case = cases[name]
        base = make.with_head(make.random_base(case["base"]), case["base"], case["task_type"])
        model = PeftModel.from_pretrained(base, folder).eval()
        with torch.no_grad():
            found = make.answers(model, case["task_type"], {})
        differences[folder.name] = difference(found, case["tasks"][int(task)])
    ok = bool(differences) and max(differences.values()) < 1e-4
    print(json.dumps({"ok": ok, "differences": differences}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
