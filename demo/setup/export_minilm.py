#!/usr/bin/env python3
"""Write the base folder of all-MiniLM-L6-v2 from its safetensors weights, without PyTorch.

    export_minilm.py [--check] MODEL_DIR OUT_DIR

MODEL_DIR holds config.json, model.safetensors and tokenizer.json as Hugging Face lays them out; any
plain BERT encoder will do (absolute positions, exact GELU). OUT_DIR receives

    model.onnx       opset 17; input_ids, attention_mask, token_type_ids, each int64
                     [batch_size, sequence_length] -> last_hidden_state, float32
                     [batch_size, sequence_length, hidden_size]
    tokenizer.json   the same bytes
    config.json      the same bytes

The same input gives the same bytes. --check compares the graph, run by ONNX Runtime, with a float64
forward pass in numpy.
"""

import argparse
import json
import math
import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

OPSET = 17
IR_VERSION = 8
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
OUTPUT = "last_hidden_state"


class Graph:
    """Nodes and initializers in the order in which they are added."""

    def __init__(self):
        self.nodes = []
        self.initializers = {}

    def constant(self, name, values):
        if name not in self.initializers:
            array = np.ascontiguousarray(values)
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def integers(self, *values):
        name = "integers_" + "_".join(str(v).replace("-", "minus") for v in values)
        return self.constant(name, np.array(values, np.int64))

    def scalar(self, name, value):
        return self.constant(name, np.float32(value))

    def add(self, operator, *inputs, output=None, **attributes):
        output = output or f"{operator}_{len(self.nodes)}"
        node = helper.make_node(operator, list(inputs), [output], name=f"node_{len(self.nodes)}_{operator}", **attributes)
        self.nodes.append(node)
        return output


class Encoder:
    """BERT's encoder (Devlin et al. 2019) as an ONNX graph."""

    def __init__(self, config, weights):
        self.graph = Graph()
        self.weights = weights
        self.layers = config["num_hidden_layers"]
        self.heads = config["num_attention_heads"]
        self.hidden = config["hidden_size"]
        self.head_size = self.hidden // self.heads
        self.epsilon = config["layer_norm_eps"]

    def weight(self, name):
        return self.graph.constant(name, self.weights[name])

    def linear(self, x, name):
        matrix = self.graph.constant(f"{name}.weight.transposed", self.weights[f"{name}.weight"].T)
        return self.graph.add("Add", self.graph.add("MatMul", x, matrix), self.weight(f"{name}.bias"))

    def layer_norm(self, x, name, output=None):
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.graph.add("LayerNormalization", x, scale, bias, output=output, axis=-1, epsilon=self.epsilon)

    def dimension(self, axis):
        shape = self.graph.add("Shape", "input_ids")
        return self.graph.add("Slice", shape, self.graph.integers(axis), self.graph.integers(axis + 1))

    def embeddings(self):
        g = self.graph
        words = g.add("Gather", self.weight("embeddings.word_embeddings.weight"), "input_ids", axis=0)
        types = g.add("Gather", self.weight("embeddings.token_type_embeddings.weight"), "token_type_ids", axis=0)
        table = self.weight("embeddings.position_embeddings.weight")
        positions = g.add("Slice", table, g.integers(0), self.sequence, g.integers(0))
        return self.layer_norm(g.add("Add", g.add("Add", words, types), positions), "embeddings.LayerNorm")

    def mask_bias(self):
        """0 where there is a token, the lowest float where there is padding: [batch, 1, 1, sequence]."""
        g = self.graph
        mask = g.add("Cast", g.add("Unsqueeze", "attention_mask", g.integers(1, 2)), to=TensorProto.FLOAT)
        padding = g.add("Sub", g.scalar("one", 1), mask)
        return g.add("Mul", padding, g.scalar("lowest", np.finfo(np.float32).min))

    def split_heads(self, x):
        g = self.graph
        shape = g.add("Concat", self.batch, self.sequence, g.integers(self.heads, self.head_size), axis=0)
        return g.add("Transpose", g.add("Reshape", x, shape), perm=[0, 2, 1, 3])

    def attention(self, x, name):
        g = self.graph
        query, key, value = (self.split_heads(self.linear(x, f"{name}.self.{part}")) for part in ("query", "key", "value"))
        query = g.add("Mul", query, g.scalar("query_scale", self.head_size**-0.5))
        scores = g.add("MatMul", query, g.add("Transpose", key, perm=[0, 1, 3, 2]))
        weights = g.add("Softmax", g.add("Add", scores, self.bias), axis=-1)
        context = g.add("Transpose", g.add("MatMul", weights, value), perm=[0, 2, 1, 3])
        shape = g.add("Concat", self.batch, self.sequence, g.integers(self.hidden), axis=0)
        return self.linear(g.add("Reshape", context, shape), f"{name}.output.dense")

    def gelu(self, x):
        g = self.graph
        erf = g.add("Erf", g.add("Mul", x, g.scalar("half_root", 0.5**0.5)))
        return g.add("Mul", g.add("Mul", x, g.scalar("half", 0.5)), g.add("Add", erf, g.scalar("one", 1)))

    def layer(self, x, index):
        g, name = self.graph, f"encoder.layer.{index}"
        attended = g.add("Add", self.attention(x, f"{name}.attention"), x)
        x = self.layer_norm(attended, f"{name}.attention.output.LayerNorm")
        inner = self.gelu(self.linear(x, f"{name}.intermediate.dense"))
        output = OUTPUT if index == self.layers - 1 else None
        return self.layer_norm(g.add("Add", self.linear(inner, f"{name}.output.dense"), x), f"{name}.output.LayerNorm", output)

    def model(self):
        self.batch, self.sequence = self.dimension(0), self.dimension(1)
        x = self.embeddings()
        self.bias = self.mask_bias()
        for index in range(self.layers):
            x = self.layer(x, index)
        axes = ["batch_size", "sequence_length"]
        graph = helper.make_graph(
            self.graph.nodes,
            "encoder",
            [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in INPUTS],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [*axes, self.hidden])],
            list(self.graph.initializers.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="preface")
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return model


def reference_forward(config, weights, ids, mask, types):
    """The same encoder in float64 numpy, written from the paper and not from the graph."""
    heads, epsilon = config["num_attention_heads"], config["layer_norm_eps"]
    w = {name: values.astype(np.float64) for name, values in weights.items()}
    erf = np.vectorize(math.erf)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def layer_norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        return centred / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attention(x, name):
        batch, sequence, hidden = x.shape
        query, key, value = (
            linear(x, f"{name}.self.{part}").reshape(batch, sequence, heads, -1).transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(hidden // heads)
        scores = np.where(mask[:, None, None, :] == 1, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        context = weights / weights.sum(-1, keepdims=True) @ value
        return linear(context.transpose(0, 2, 1, 3).reshape(x.shape), f"{name}.output.dense")

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][types]
    x = layer_norm(x + w["embeddings.position_embeddings.weight"][: ids.shape[1]], "embeddings.LayerNorm")
    for index in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{index}"
        x = layer_norm(x + attention(x, f"{name}.attention"), f"{name}.attention.output.LayerNorm")
        inner = linear(x, f"{name}.intermediate.dense")
        inner = inner * (1 + erf(inner / math.sqrt(2))) / 2
        x = layer_norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    return x


def check(config, weights, path):
    """Largest absolute difference to the float64 forward over two rows, one of them padded."""
    import onnxruntime

    random = np.random.default_rng(0)
    ids = random.integers(1, config["vocab_size"], (2, 12))
    mask = np.ones_like(ids)
    ids[1, 7:], mask[1, 7:] = 0, 0
    types = np.zeros_like(ids)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT], dict(zip(INPUTS, (ids, mask, types))))
    expected = reference_forward(config, weights, ids, mask, types)
    return float(np.abs(found - expected)[mask == 1].max())


def read_model(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("hidden_act") != "gelu" or config.get("position_embedding_type", "absolute") != "absolute":
        raise SystemExit(f"{folder}: only BERT with absolute positions and exact GELU can be exported")
    tensors = load_file(folder / "model.safetensors")
    weights = {name.removeprefix("bert."): t.astype(np.float32) for name, t in tensors.items() if t.dtype.kind == "f"}
    return config, weights


def write_file(path, contents):
    """Write beside the target and rename, so that nobody sees half a file."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--check", action="store_true", help="compare with a float64 forward pass")
    arguments = parser.parse_args()

    config, weights = read_model(arguments.model_dir)
    model = Encoder(config, weights).model()
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "config.json"):
        write_file(arguments.out_dir / name, (arguments.model_dir / name).read_bytes())
    path = arguments.out_dir / "model.onnx"
    write_file(path, model.SerializeToString(deterministic=True))
    print(f"{path}: {path.stat().st_size} bytes, {len(model.graph.node)} nodes")
    if arguments.check:
        difference = check(config, weights, path)
        print(f"largest difference to the float64 forward pass: {difference:.2e}")
        if not difference < 1e-4:
            path.unlink()
            raise SystemExit("the exported graph is wrong: model.onnx was removed")


if __name__ == "__main__":
    main()
