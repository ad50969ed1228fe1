#!/usr/bin/env python3
"""Writes a Llama-shaped decoder of 100 million random numbers as an ONNX base with a cache, and as GGUF.

    out/benches/llama/venv/bin/python benches/decode/model.py [--out out/benches/decoder]

The folder holds model.onnx with model.onnx.data, config.json and tokenizer.json, as optimum lays a decoder with a cache
out: input_ids, attention_mask, position_ids and past_key_values.N.key and .value give logits and present.N.key and
.value. The same numbers are in decoder.f16.gguf and decoder.q4_0.gguf, all matrices in the type of the name.
"""

import argparse
import json
import pathlib

import gguf
import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = pathlib.Path(__file__).resolve().parents[2]
VOCABULARY, HIDDEN, LAYERS, HEADS, KV_HEADS, WIDE = 16384, 768, 12, 12, 4, 2048
HEAD = HIDDEN // HEADS
POSITIONS, BASE, EPSILON = 2048, 10000.0, 1e-5
SMALLEST_BYTES = 1024
# The names of a layer's matrices in the ONNX base and in GGUF, with their rows and columns, `[out, in]`.
MATRICES = [
    ("self_attn.q_proj", "attn_q", HIDDEN, HIDDEN),
    ("self_attn.k_proj", "attn_k", KV_HEADS * HEAD, HIDDEN),
    ("self_attn.v_proj", "attn_v", KV_HEADS * HEAD, HIDDEN),
    ("self_attn.o_proj", "attn_output", HIDDEN, HIDDEN),
    ("mlp.gate_proj", "ffn_gate", WIDE, HIDDEN),
    ("mlp.up_proj", "ffn_up", WIDE, HIDDEN),
    ("mlp.down_proj", "ffn_down", HIDDEN, WIDE),
]


def weights(seed: int) -> dict[str, numpy.ndarray]:
    """Every tensor under its name in GGUF; matrices are `[out, in]` and keep the size of what passes through them."""
    random = numpy.random.default_rng(seed)

    def matrix(rows: int, columns: int, scale: float) -> numpy.ndarray:
        return random.standard_normal((rows, columns), numpy.float32) * numpy.float32(scale)

    def norm() -> numpy.ndarray:
        return 1 + numpy.float32(0.1) * random.standard_normal(HIDDEN, numpy.float32)

    found = {"token_embd": matrix(VOCABULARY, HIDDEN, 1.0)}
    for layer in range(LAYERS):
        for _, name, rows, columns in MATRICES:
            found[f"blk.{layer}.{name}"] = matrix(rows, columns, columns**-0.5)
        found[f"blk.{layer}.attn_norm"], found[f"blk.{layer}.ffn_norm"] = norm(), norm()
    found["output_norm"], found["output"] = norm(), matrix(VOCABULARY, HIDDEN, HIDDEN**-0.5)
    return found


class Graph:
    """Nodes and constants in the order in which they are added."""

    def __init__(self):
        self.nodes, self.constants, self.known = [], [], {}

    def constant(self, value, dtype=numpy.int64) -> str:
        key = (str(value), dtype)
        if key not in self.known:
            self.known[key] = self.tensor(f"c{len(self.known)}", numpy.array(value, dtype))
        return self.known[key]

    def number(self, value) -> str:
        return self.constant(value, numpy.float32)

    def tensor(self, name: str, value: numpy.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def add(self, operator: str, *inputs: str, outputs=None, **attributes):
        outputs = outputs or [f"{operator}_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(operator, list(inputs), outputs, name=outputs[0], **attributes))
        return outputs[0] if len(outputs) == 1 else outputs


class Decoder:
    """Writes the nodes of the decoder."""

    def __init__(self, tensors: dict[str, numpy.ndarray]):
        self.graph, self.tensors = Graph(), tensors

    def product(self, rows: str, name: str, onnx_name: str) -> str:
        weight = self.graph.tensor(f"{onnx_name}.weight_T", numpy.ascontiguousarray(self.tensors[name].T))
        return self.graph.add("MatMul", rows, weight)

    def norm(self, rows: str, name: str, onnx_name: str) -> str:
        add, number = self.graph.add, self.graph.number
        mean = add("ReduceMean", add("Mul", rows, rows), axes=[-1], keepdims=1)
        scaled = add("Div", rows, add("Sqrt", add("Add", mean, number([EPSILON]))))
        return add("Mul", scaled, self.graph.tensor(f"{onnx_name}.weight", self.tensors[name]))

    def start(self) -> str:
        """The embeddings; and what all layers share: sizes, the mask, cosines and sines."""
        add, constant, number = self.graph.add, self.graph.constant, self.graph.number
        whole = self.graph.tensor("model.embed_tokens.weight", self.tensors["token_embd"])
        rows = add("Gather", whole, "input_ids")
        shape = add("Shape", "input_ids")
        self.batch = add("Slice", shape, constant([0]), constant([1]))
        self.tokens = add("Slice", shape, constant([1]), constant([2]))
        self.all = add("Slice", add("Shape", "attention_mask"), constant([1]), constant([2]))
        past = add("Squeeze", add("Sub", self.all, self.tokens), constant([0]))
        end = add("Squeeze", self.all, constant([0]))
        keys = add("Unsqueeze", add("Range", constant(0), end, constant(1)), constant([0]))
        queries = add("Unsqueeze", add("Range", past, end, constant(1)), constant([1]))
        seen = add("Cast", add("Unsqueeze", "attention_mask", constant([1, 2])), to=TensorProto.BOOL)
        self.mask = add("Where", add("And", seen, add("LessOrEqual", keys, queries)), number([0.0]), number([-3.4028235e38]))
        frequencies = self.graph.tensor("frequencies", (BASE ** (-numpy.arange(0, HEAD, 2) / HEAD)).astype(numpy.float32).reshape(1, 1, -1))
        positions = add("Unsqueeze", add("Cast", "position_ids", to=TensorProto.FLOAT), constant([2]))
        half = add("Mul", positions, frequencies)
        angles = add("Unsqueeze", add("Concat", half, half, axis=-1), constant([1]))
        self.cosines, self.sines = add("Cos", angles), add("Sin", angles)
        return rows

    def heads(self, rows: str, count: int) -> str:
        add = self.graph.add
        shape = add("Concat", self.batch, self.tokens, self.graph.constant([count, HEAD]), axis=0)
        return add("Transpose", add("Reshape", rows, shape), perm=[0, 2, 1, 3])

    def turned(self, heads: str) -> str:
        add = self.graph.add
        number = len(self.graph.nodes)
        first, second = add("Split", heads, self.graph.constant([HEAD // 2] * 2), outputs=[f"Split_{number}_0", f"Split_{number}_1"], axis=-1)
        across = add("Concat", add("Neg", second), first, axis=-1)
        return add("Add", add("Mul", heads, self.cosines), add("Mul", across, self.sines))

    def repeated(self, heads: str) -> str:
        """Each head of the cache for the queries that share it."""
        add, constant = self.graph.add, self.graph.constant
        wide = add("Expand", add("Unsqueeze", heads, constant([2])), constant([1, 1, HEADS // KV_HEADS, 1, 1]))
        return add("Reshape", wide, add("Concat", self.batch, constant([HEADS]), self.all, constant([HEAD]), axis=0))

    def layer(self, rows: str, layer: int) -> str:
        add = self.graph.add
        named = {own: (f"blk.{layer}.{own}", f"model.layers.{layer}.{name}") for name, own, _, _ in MATRICES}
        normed = self.norm(rows, f"blk.{layer}.attn_norm", f"model.layers.{layer}.input_layernorm")
        queries = self.turned(self.heads(self.product(normed, *named["attn_q"]), HEADS))
        keys = self.turned(self.heads(self.product(normed, *named["attn_k"]), KV_HEADS))
        values = self.heads(self.product(normed, *named["attn_v"]), KV_HEADS)
        keys = add("Concat", f"past_key_values.{layer}.key", keys, outputs=[f"present.{layer}.key"], axis=-2)
        values = add("Concat", f"past_key_values.{layer}.value", values, outputs=[f"present.{layer}.value"], axis=-2)
        scaled = add("Mul", queries, self.graph.number([HEAD**-0.5]))
        scores = add("MatMul", scaled, add("Transpose", self.repeated(keys), perm=[0, 1, 3, 2]))
        attention = add("MatMul", add("Softmax", add("Add", scores, self.mask), axis=-1), self.repeated(values))
        shape = add("Concat", self.batch, self.tokens, self.graph.constant([HIDDEN]), axis=0)
        joined = add("Reshape", add("Transpose", attention, perm=[0, 2, 1, 3]), shape)
        rows = add("Add", rows, self.product(joined, *named["attn_output"]))
        normed = self.norm(rows, f"blk.{layer}.ffn_norm", f"model.layers.{layer}.post_attention_layernorm")
        gate = self.product(normed, *named["ffn_gate"])
        gated = add("Mul", add("Mul", gate, add("Sigmoid", gate)), self.product(normed, *named["ffn_up"]))
        return add("Add", rows, self.product(gated, *named["ffn_down"]))

    def model(self) -> onnx.ModelProto:
        rows = self.start()
        for layer in range(LAYERS):
            rows = self.layer(rows, layer)
        normed = self.norm(rows, "output_norm", "model.norm")
        weight = self.graph.tensor("lm_head.weight_T", numpy.ascontiguousarray(self.tensors["output"].T))
        self.graph.add("MatMul", normed, weight, outputs=["logits"])
        batch, tokens, past, every = "batch_size", "sequence_length", "past_sequence_length", "past_sequence_length + sequence_length"
        inputs = [("input_ids", TensorProto.INT64, [batch, tokens]), ("attention_mask", TensorProto.INT64, [batch, every])]
        inputs.append(("position_ids", TensorProto.INT64, [batch, tokens]))
        outputs = [("logits", TensorProto.FLOAT, [batch, tokens, VOCABULARY])]
        for layer in range(LAYERS):
            for part in ("key", "value"):
                inputs.append((f"past_key_values.{layer}.{part}", TensorProto.FLOAT, [batch, KV_HEADS, past, HEAD]))
                outputs.append((f"present.{layer}.{part}", TensorProto.FLOAT, [batch, KV_HEADS, every, HEAD]))
        infos = [[helper.make_tensor_value_info(*entry) for entry in entries] for entries in (inputs, outputs)]
        graph = helper.make_graph(self.graph.nodes, "decoder", *infos, self.graph.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_base(tensors: dict[str, numpy.ndarray], folder: pathlib.Path) -> None:
    model = Decoder(tensors).model()
    (folder / "model.onnx.data").unlink(missing_ok=True)
    target = folder / "model.onnx"
    onnx.save_model(model, target, save_as_external_data=True, location="model.onnx.data", size_threshold=SMALLEST_BYTES)
    onnx.checker.check_model(target)
    config = {"model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": WIDE}
    config |= {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD}
    config |= {"max_position_embeddings": POSITIONS, "rope_theta": BASE, "rms_norm_eps": EPSILON, "bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    special = ["<unk>", "<s>", "</s>"]
    words = {word: number for number, word in enumerate(special + [f"w{number}" for number in range(len(special), VOCABULARY)])}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None}
    tokenizer |= {"added_tokens": [{"id": words[word], "content": word, **flags} for word in special]}
    tokenizer |= {"normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None}
    tokenizer |= {"model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer) + "\n")


def pairs_beside(matrix: numpy.ndarray, heads: int) -> numpy.ndarray:
    """The rows of queries or keys as llama.cpp turns them: a pair beside each other, not half a head apart."""
    return matrix.reshape(heads, 2, HEAD // 2, -1).swapaxes(1, 2).reshape(matrix.shape)


def write_gguf(tensors: dict[str, numpy.ndarray], path: pathlib.Path, dtype: gguf.GGMLQuantizationType) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_freq_base(BASE)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")
    for name, tensor in tensors.items():
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-1])
        tensor = tensor if heads is None else pairs_beside(tensor, heads)
        if tensor.ndim == 1:
            writer.add_tensor(f"{name}.weight", tensor)
        else:
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(tensor, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "out/benches/decoder")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tensors = weights(arguments.seed)
    write_base(tensors, arguments.out)
    for dtype in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q4_0):
        write_gguf(tensors, arguments.out / f"decoder.{dtype.name.lower()}.gguf", dtype)
    numbers = sum(tensor.size for tensor in tensors.values())
    print(f"{numbers / 1e6:.1f} million numbers in {arguments.out}")


if __name__ == "__main__":
    main()
