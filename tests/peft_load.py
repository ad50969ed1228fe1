#!/usr/bin/env python3
"""Does PEFT read an adapter folder of ours as we mean it?

    peft_load.py ADAPTER_DIR MODEL_DIR

ADAPTER_DIR holds adapter_config.json and adapter_model.safetensors, and preface.json where the trainer wrote
it; MODEL_DIR is a BERT encoder in Hugging Face's layout. Loads the adapter with PeftModel.from_pretrained
and asserts

  tensors  the prompt, and for SEQ_CLS the classifier, that PEFT holds equal those in the file bit for bit
  hidden   the last hidden states are those of the plain encoder with our form of the prompt:
           embeddings: PEFT's own forward pass against [prompt; word embeddings] as inputs_embeds;
           key-values: the encoder on PEFT's cache, text positions from zero (PEFT's own forward pass starts
           them behind the prefix), against [tokens, 2 * layers, heads, head_dim] taken from the file
  probes   where preface.json has probes: pooling and head on those hidden states give the recorded labels

Prints one JSON object; exit 0 if all of that holds, 1 if not. Runs on the Python of `make peft`.
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, BertModel

sys.dont_write_bytecode = True  # no __pycache__ beside the golden files
sys.path.insert(0, str(Path(__file__).parent / "golden"))
import minilm_gradient as reference

TOLERANCE = 1e-5
HEAD = ("base_model.classifier.weight", "base_model.classifier.bias")


def base_model(folder, task_type, classes):
    kind, extra = (BertForSequenceClassification, {"num_labels": classes}) if task_type == "SEQ_CLS" else (BertModel, {})
    return kind.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32, **extra).eval()


def tensors_equal(model, tensors, task_type):
    found = {"prompt_embeddings": model.prompt_encoder["default"].embedding.weight}
    if task_type == "SEQ_CLS" and HEAD[0] in tensors:
        classifier = model.get_base_model().classifier.modules_to_save["default"]
        found |= dict(zip(HEAD, (classifier.weight, classifier.bias)))
    return {name: torch.equal(value, tensors[name]) for name, value in found.items()}


def embeddings_hidden(model, encoder, prompt, ids):
    """Hidden states of the text positions by PEFT's forward pass, and by inputs_embeds."""
    mask = torch.ones_like(ids)
    outputs = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    words = torch.cat([prompt[None], encoder.embeddings.word_embeddings(ids)], 1)
    expected = encoder(inputs_embeds=words, attention_mask=torch.ones(words.shape[:2], dtype=torch.long))
    return outputs.hidden_states[-1][:, len(prompt) :], expected.last_hidden_state[:, len(prompt) :]


def key_values_hidden(model, encoder, prompt, ids):
    """Hidden states of the text by the encoder on PEFT's cache, and by our own attention."""
    config = encoder.config
    heads = config.num_attention_heads
    by_layer = prompt.view(len(prompt), config.num_hidden_layers, 2, heads, config.hidden_size // heads)
    prefix = by_layer.permute(1, 2, 3, 0, 4)
    positions = torch.arange(ids.shape[1])[None]
    found = encoder(input_ids=ids, position_ids=positions, past_key_values=model.get_prompt(batch_size=1))
    return found.last_hidden_state, reference.forward(encoder, ids, torch.ones_like(ids), prefix=prefix)


def pooled(hidden, pooling):
    """[hidden] of one row without padding, [1, sequence, hidden]."""
    return {"mean": hidden[0].mean(0), "first": hidden[0, 0], "last": hidden[0, -1]}[pooling]


def main():
    adapter, folder = Path(sys.argv[1]), Path(sys.argv[2])
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(adapter / "adapter_model.safetensors")
    preface = adapter / "preface.json"
    notes = json.loads(preface.read_text(encoding="utf-8")) if preface.exists() else {}
    classes = len(tensors[HEAD[0]]) if HEAD[0] in tensors else 2

    base = base_model(folder, config["task_type"], classes)
    encoder = base.bert if config["task_type"] == "SEQ_CLS" else base
    model = PeftModel.from_pretrained(base, adapter).eval()
    prefix = config["peft_type"] == "PREFIX_TUNING"
    run = key_values_hidden if prefix else embeddings_hidden

    rows = [probe["ids"] for probe in notes.get("probes", [])] or list(reference.TEXTS.values())
    differences, labels = [], []
    with torch.no_grad():
        for row in rows:
            found, expected = run(model, encoder, tensors["prompt_embeddings"], torch.tensor([row]))
            differences.append((found - expected).abs().max().item())
            if HEAD[0] in tensors and "pooling" in notes:
                logits = tensors[HEAD[0]] @ pooled(found, notes["pooling"]) + tensors[HEAD[1]]
                labels.append(logits.argmax().item())
    wanted = [probe["label"] for probe in notes.get("probes", [])]
    equal = tensors_equal(model, tensors, config["task_type"])
    report = {
        "peft_type": config["peft_type"],
        "task_type": config["task_type"],
        "tensors_equal": equal,
        "hidden_difference": max(differences),
        "probes": [{"label": label, "expected": expected} for label, expected in zip(labels, wanted)],
    }
    report["ok"] = all(equal.values()) and max(differences) < TOLERANCE and (not labels or not wanted or labels == wanted)
    print(json.dumps(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
