#!/usr/bin/env python3
"""Does stock ONNX Runtime load an adapter file of ours, and numpy a prompt?

    ort_adapter.py FILE.onnx_adapter ADAPTER.safetensors [PROMPT.npy]

The parameters must be the prompt of ADAPTER bit for bit: rows as prompt_embeddings, or keys and values of each layer
as past_key_values.N.key and .value [1, heads, tokens, head_dim]. A graph whose input prompt_embeddings is empty by
default must give the prompt once the adapter is active. Runs on the Python of `make base`.
"""

import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file


def run(path, width):
    """What a stock session gives for the prompt: by itself, and with the adapter."""
    empty = numpy_helper.from_array(np.zeros((0, width), np.float32), "prompt_embeddings")
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", width])
    node = helper.make_node("Identity", ["prompt_embeddings"], ["found"])
    graph = helper.make_graph([node], "g", [value("prompt_embeddings")], [value("found")], [empty])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    adapter, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    adapter.Load(path)
    options.add_active_adapter(adapter)
    return session.run(None, {})[0], session.run(None, {}, options)[0]


def main():
    path, prompt = sys.argv[1], load_file(sys.argv[2])["prompt_embeddings"]
    file = onnxruntime.AdapterFormat.read_adapter(path)
    parameters = {name: value.numpy() for name, value in file.get_parameters().items()}
    onnxruntime.LoraAdapter().Load(path)
    if list(parameters) == ["prompt_embeddings"]:
        assert np.array_equal(parameters["prompt_embeddings"], prompt)
        without, with_adapter = run(path, prompt.shape[1])
        assert without.shape == (0, prompt.shape[1]) and np.array_equal(with_adapter, prompt)
    else:
        layers = len(parameters) // 2
        _, heads, tokens, width = parameters["past_key_values.0.key"].shape
        rows = prompt.reshape(tokens, layers, 2, heads, width).transpose(1, 2, 3, 0, 4)
        for layer in range(layers):
            for half, name in enumerate(["key", "value"]):
                assert np.array_equal(parameters[f"past_key_values.{layer}.{name}"][0], rows[layer, half])
    if len(sys.argv) > 3:
        assert np.array_equal(np.load(sys.argv[3]), prompt)


if __name__ == "__main__":
    main()
