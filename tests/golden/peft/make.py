#!/usr/bin/env python3
"""Makes the golden files of tests/exchange.rs with real PEFT: run it on the Python of `make peft`.

    make.py [FOLDER]    default: the folder of this file

  bases/NAME      a random base of a few tens of KB as an ONNX folder: BERT, GPT-2, Llama with grouped queries, T5,
                  a deeper T5 that tells few distances apart, BART; of BERT also its pooler, which the ONNX does not have
  adapters/NAME   what PEFT's save_pretrained wrote
  expected.json   for each adapter what PEFT in PyTorch answers: logits [labels] of each text, [words, labels] where
                  tokens are labelled, or the generated words; of the deeper T5 and BART also the logits of every
                  word for the first of them

Every number follows from fixed seeds. The files in the repository are kept: a new version of PEFT is tried in
another folder, and a difference is looked at, not written over.
"""

import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import peft
import torch
import transformers
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import (
    BartConfig, BartForConditionalGeneration, BertConfig, BertForSequenceClassification, BertForTokenClassification, BertModel,
    GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification,
    T5Config, T5ForConditionalGeneration,
)

VOCABULARY, LABELS, TOKENS, GENERATED = 64, ["red", "green", "blue"], 3, 6
TEXTS = ["w5 w9 w31", "w40 w12 w12 w7 w22 w60", "w8"]
SIZES = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 48}
CONFIGS = {
    "bert": BertConfig(**SIZES, hidden_size=16, intermediate_size=24),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_layer=2, n_head=4, n_embd=16, n_inner=24, n_positions=48,
                       bos_token_id=2, eos_token_id=3, pad_token_id=0),
    "llama": LlamaConfig(**SIZES, hidden_size=24, head_dim=8, num_key_value_heads=2, intermediate_size=24,
                         bos_token_id=2, eos_token_id=3, pad_token_id=0),
    "t5": T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, decoder_start_token_id=0,
                   eos_token_id=3, pad_token_id=0),
    "t5-deep": T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=24, num_layers=3, num_heads=4, decoder_start_token_id=0,
                        eos_token_id=3, pad_token_id=0, relative_attention_num_buckets=6, relative_attention_max_distance=7),
    "bart": BartConfig(vocab_size=VOCABULARY, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                       decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=48,
                       bos_token_id=2, eos_token_id=3, pad_token_id=0, decoder_start_token_id=2, forced_eos_token_id=None),
}
BASES = {"bert": BertModel, "gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM, "t5": T5ForConditionalGeneration,
         "t5-deep": T5ForConditionalGeneration, "bart": BartForConditionalGeneration}
MODELS = {
    ("bert", "TOKEN_CLS"): BertForTokenClassification,
    ("bert", "SEQ_CLS"): BertForSequenceClassification,
    ("gpt2", "SEQ_CLS"): GPT2ForSequenceClassification,
    ("llama", "SEQ_CLS"): LlamaForSequenceClassification,
}
PROJECTED = {"prefix_projection": True, "encoder_hidden_size": 8}
ADAPTERS = {
    "bert-tags-prompt": ("bert", "TOKEN_CLS", "PromptTuningConfig", {}),
    "bert-tags-prefix": ("bert", "TOKEN_CLS", "PrefixTuningConfig", {}),
    "bert-pooled-prompt": ("bert", "SEQ_CLS", "PromptTuningConfig", {}),
    "bert-pooled-prefix": ("bert", "SEQ_CLS", "PrefixTuningConfig", {}),
    "gpt2-mlp": ("gpt2", "SEQ_CLS", "PromptEncoderConfig", {"encoder_hidden_size": 8}),
    "gpt2-prefix": ("gpt2", "CAUSAL_LM", "PrefixTuningConfig", PROJECTED),
    "gpt2-cartridge": ("gpt2", "SEQ_CLS", "CartridgeConfig", {}),
    "llama-prefix": ("llama", "SEQ_CLS", "PrefixTuningConfig", {}),
    "llama-lstm": ("llama", "CAUSAL_LM", "PromptEncoderConfig", {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 8}),
    "llama-tasks": ("llama", "SEQ_CLS", "MultitaskPromptTuningConfig", {"num_tasks": 2, "num_ranks": 1}),
    "t5-prompt": ("t5", "SEQ_2_SEQ_LM", "PromptTuningConfig", {}),
    "t5-tasks": ("t5", "SEQ_2_SEQ_LM", "MultitaskPromptTuningConfig", {"num_tasks": 2, "num_ranks": 1}),
    "t5-prefix": ("t5", "SEQ_2_SEQ_LM", "PrefixTuningConfig", {}),
    "gpt2-lora": ("gpt2", "CAUSAL_LM", "LoraConfig", {"r": 1, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "gpt2-ia3": ("gpt2", "CAUSAL_LM", "IA3Config", {"target_modules": ["c_attn"], "feedforward_modules": [], "fan_in_fan_out": True}),
    "gpt2-adalora": ("gpt2", "CAUSAL_LM", "AdaLoraConfig", {"init_r": 1, "target_modules": ["c_attn"], "total_step": 10, "fan_in_fan_out": True}),
    "t5-deep-prefix": ("t5-deep", "SEQ_2_SEQ_LM", "PrefixTuningConfig", PROJECTED),
    "bart-prefix": ("bart", "SEQ_2_SEQ_LM", "PrefixTuningConfig", {}),
}


def tokenizer():
    """Words w4 to w63, parted by white space; the ids are the numbers."""
    special = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    words = special | {f"w{index}": index for index in range(4, VOCABULARY)}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None, "decoder": None,
        "added_tokens": [{"id": id, "content": name, **added} for name, id in special.items()],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }


def ids_of(text):
    return torch.tensor([[int(word[1:]) for word in text.split()]])


def random_base(name):
    """A base of numbers large enough that prompts and texts change its answers."""
    torch.manual_seed(7)
    config = CONFIGS[name]
    config._attn_implementation = "eager"
    model = BASES[name](config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


class Exported(torch.nn.Module):
    def __init__(self, model, kind):
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, input_ids, attention_mask, decoder_input_ids=None):
        if self.kind == "bert":
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        extra = {} if decoder_input_ids is None else {"decoder_input_ids": decoder_input_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra).logits


def export(model, name, folder):
    folder.mkdir(parents=True)
    texts = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    inputs = {"input_ids": texts, "attention_mask": torch.ones_like(texts)}
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    axes = {name: {0: batch, 1: sequence} for name in inputs}
    if CONFIGS[name].is_encoder_decoder:
        inputs["decoder_input_ids"] = texts[:, :3]
        axes["decoder_input_ids"] = {0: batch, 1: torch.export.Dim("decoder_sequence")}
    else:
        axes["decoder_input_ids"] = None
    output = "last_hidden_state" if name == "bert" else "logits"
    program = torch.onnx.export(Exported(model, name).eval(), (), kwargs=inputs, dynamo=True, opset_version=18,
                                input_names=list(inputs), output_names=[output],
                                dynamic_shapes={key: axes.get(key) for key in ["input_ids", "attention_mask", "decoder_input_ids"] if key in inputs})
    import onnx

    proto = program.model_proto
    for node in proto.graph.node:  # which line of which file a node comes from is of no use to anybody
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in list(proto.graph.value_info) + list(proto.graph.input) + list(proto.graph.output) + list(proto.graph.initializer):
        del value.metadata_props[:]
    del proto.graph.value_info[:]
    del proto.functions[:]
    onnx.save(proto, folder / "model.onnx")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    if name == "bert":
        pooler = {key: value for key, value in model.state_dict().items() if key.startswith("pooler.")}
        save_file(pooler, folder / "pooler.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIGS[name].to_dict() | {"torch_dtype": None}, default=str))


def with_head(base, kind, task):
    """The model of that task on the base's own weights, and a head of its own."""
    if (kind, task) not in MODELS:
        return base
    torch.manual_seed(11)
    config = type(base.config)(**(base.config.to_dict() | {"num_labels": len(LABELS), "id2label": dict(enumerate(LABELS))}))
    config._attn_implementation = "eager"
    model = MODELS[kind, task](config).eval()
    backbone = base if kind == "bert" else base.base_model
    model.base_model.load_state_dict(backbone.state_dict(), strict=kind == "gpt2" or kind == "llama")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("classifier", "score")):
                parameter.normal_(0, 0.5)
    return model


def answers(model, task, more):
    found = []
    for text in TEXTS:
        ids = ids_of(text)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
            begin = ids.shape[1] if task == "CAUSAL_LM" else 1
            made = model.generate(**inputs, **more, max_new_tokens=GENERATED, do_sample=False)[0, begin:]
            found.append(" ".join(f"w{id}" for id in made.tolist() if id > 3))
        else:
            logits = model(**inputs, **more).logits[0]
            found.append(logits[-ids.shape[1] :].tolist() if task == "TOKEN_CLS" else logits.tolist())
    return found


def first_logits(model):
    found = []
    for text in TEXTS:
        ids = ids_of(text)
        begin = torch.tensor([[model.get_base_model().config.decoder_start_token_id]])
        found.append(model(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=begin).logits[0, 0].tolist())
    return found


def make(name, base, folder):
    kind, task, config, options = ADAPTERS[name]
    learns = config not in ("LoraConfig", "IA3Config", "AdaLoraConfig")
    model = with_head(base, kind, task)
    torch.manual_seed(13)
    options = options | ({"num_virtual_tokens": TOKENS} if learns else {})
    tuned = get_peft_model(model, getattr(peft, config)(task_type=task, **options)).eval()
    if config == "MultitaskPromptTuningConfig":
        for parameter in (tuned.prompt_encoder["default"].prefix_task_cols, tuned.prompt_encoder["default"].prefix_task_rows):
            parameter.data.normal_(0, 1)
    with tempfile.TemporaryDirectory() as saved:
        tuned.save_pretrained(saved)
        (folder / "adapters" / name).mkdir(parents=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(Path(saved) / file, folder / "adapters" / name / file)
        case = {"base": kind, "task_type": task, "texts": TEXTS}
        if learns:
            loaded = PeftModel.from_pretrained(with_head(random_base(kind), kind, task), saved).eval()
            with torch.no_grad():
                case["tasks"] = [
                    answers(loaded, task, {"task_ids": torch.tensor([index])} if "num_tasks" in options else {})
                    for index in range(options.get("num_tasks", 1))
                ]
                if kind in ("t5-deep", "bart"):
                    case["first_logits"] = first_logits(loaded)
    return case


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    warnings.filterwarnings("ignore")
    expected = {}
    for name in ("bases", "adapters"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for kind in CONFIGS:
        export(random_base(kind), kind, folder / "bases" / kind)
    for name in ADAPTERS:
        expected[name] = make(name, random_base(ADAPTERS[name][0]), folder)
    versions = {"peft": peft.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    text = json.dumps({"versions": versions, "labels": LABELS, "generated": GENERATED, "cases": expected}, indent=1)
    (folder / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
