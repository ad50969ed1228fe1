#!/usr/bin/env python3
"""Writes the golden bundles beside it, and for each the report that a reader must give of it.

Written from bundle/FORMAT.md alone and without any code of ours, so that what the reader says is compared with what
an independent writer meant. The files were written once; every later version must read them as they are.

    python3 make.py FOLDER     needs the package `cryptography` and the library libzstd.so.1
"""

import ctypes
import ctypes.util
import hashlib
import json
import struct
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

CONTEXT = b"\x89PRF\r\n\x1a\nsoft-prompt-bundle-v001\n"
ROLES = ["", "embeddings", "key-values", "head-weight", "head-bias", "head-factor", "gate"]
DTYPES = ["", "f32", "f16", "bf16", "i8", "i4"]
CODECS = ["stored", "zstd", "shuffle+zstd"]
CHECKS = [
    "frame", "signature", "threshold", "manifest", "scope", "namespace", "base", "tokenizer", "revocation", "rollback",
    "expiry", "runtime", "payload-digest", "decompression", "tensor-digest", "values",
]
# Test keys: every byte of the seed is the number. `stranger` is not in the trust store.
KEYS = {"release": 1, "second": 2, "field": 3, "stranger": 9}


def sha256(data):
    return hashlib.sha256(data).digest()


BASE, TOKENIZER = sha256(b"golden base"), sha256(b"golden tokenizer")
NAMESPACE = sha256(b"preface-namespace-v1\0" + b"golden")[:16]


def key_of(name):
    private = Ed25519PrivateKey.from_private_bytes(bytes([KEYS[name]]) * 32)
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return private, public, sha256(b"preface-key-v1\0ed25519\0" + public)[:16]


def trust_text():
    import base64

    lines = ["preface-trust v1", "namespace golden", "version 3", "threshold 1", "min-security 2"]
    for name, tasks in [("release", "*"), ("second", "*"), ("field", "acme.*")]:
        text = base64.b64encode(key_of(name)[1]).decode()
        lines.append(f"key ed25519:{text} name={name} tasks={tasks}")
    return "\n".join(lines) + "\n"


def numbers(salt, count, low, high):
    """Repeatable whole numbers, with runs that a compressor finds."""
    state, out = salt * 2654435761 % 2**32 or 1, []
    while len(out) < count:
        state = (state * 1664525 + 1013904223) % 2**32
        out += [low + (state >> 16) % (high - low + 1)] * (1 + (state >> 28) % 4)
    return out[:count]


def tensor(role, dtype, dims, salt, layer=0, group=0):
    count = 1
    for size in dims:
        count *= size
    if dtype in ("f32", "f16", "bf16"):
        values = [n / 64 for n in numbers(salt, count, -96, 96)]
        form = {"f32": lambda v: struct.pack("<f", v), "f16": lambda v: struct.pack("<e", v),
                "bf16": lambda v: struct.pack("<f", v)[2:]}[dtype]
        data = b"".join(map(form, values))
    else:
        groups = -(-count // group)
        scales = [(1 + n) / 256 for n in numbers(salt + 7, groups, 0, 30)]
        whole = numbers(salt, count, -127, 127) if dtype == "i8" else numbers(salt, count, -8, 7)
        data = b"".join(struct.pack("<e", scale) for scale in scales)
        if dtype == "i8":
            data += struct.pack(f"<{count}b", *whole)
        else:
            data += bytes((a & 15) | (b & 15) << 4 for a, b in zip(whole[::2], whole[1::2]))
        values = [scales[at // group] * n for at, n in enumerate(whole)]
    read = b"".join(struct.pack("<f", value) for value in values)
    return {"role": role, "dtype": dtype, "dims": dims, "layer": layer, "group": group, "data": data, "count": count,
            "values_sha256": sha256(read).hex()}


def table(tensors):
    out, offset = b"", 0
    for one in tensors:
        dims = one["dims"] + [0] * (5 - len(one["dims"]))
        out += struct.pack("<3H2BH5H3I", ROLES.index(one["role"]), DTYPES.index(one["dtype"]), one["layer"],
                           len(one["dims"]), 0, one["group"], *dims, offset, len(one["data"]), 0)
        offset += len(one["data"])
    return out


def shuffled(tensors):
    out = b""
    for one in tensors:
        width = {"f32": 4, "f16": 2, "bf16": 2}.get(one["dtype"], 1)
        out += b"".join(one["data"][plane::width] for plane in range(width))
    return out


def compress(data):
    zstd = ctypes.CDLL(ctypes.util.find_library("zstd") or "libzstd.so.1")
    zstd.ZSTD_compress.restype = ctypes.c_size_t
    size = ctypes.c_size_t
    room = len(data) + 1024
    out = ctypes.create_string_buffer(room)
    written = zstd.ZSTD_compress(out, size(room), data, size(len(data)), 19)
    assert written < room and not zstd.ZSTD_isError(size(written))
    return out.raw[:written]


def ids(values):
    return struct.pack("<H", len(values)) + struct.pack(f"<{len(values)}I", *values)


def fields(task, tensors):
    """The typed fields and what a report says of them."""
    out = {0x8001: table(tensors), 0x8006: struct.pack("<2H", task["positions"], 0)}
    kind = ["", "linear", "verbaliser", "factored-linear", "label-text", "token-linear", "generation",
            "tanh-linear"]
    labels = task.get("labels", [])
    out[0x8003] = struct.pack("<4H", kind.index(task["head"]), len(labels), task["hidden"], 0)
    if labels:
        out[0x8002] = struct.pack("<H", len(labels))
        out[0x8002] += b"".join(bytes([len(name.encode())]) + name.encode() for name in labels)
    if "template" in task:
        out[0x8004] = task["template"].encode()
    pooling = ["", "mean", "first", "last", "mask", "prompt"]
    if "pooling" in task:
        out[0x8005] = struct.pack("<2H", pooling.index(task["pooling"]), 0)
    if "verbaliser" in task:
        out[0x8007] = struct.pack("<H", len(task["verbaliser"])) + b"".join(map(ids, task["verbaliser"]))
    if "decode" in task:
        out[0x8008] = struct.pack("<H", task["decode"]["most_tokens"]) + ids(task["decode"]["stop_ids"])
    if "answer" in task:
        answer = task["answer"]
        kinds, inputs = ["", "label", "labels", "tags", "text"], ["", "one", "pair"]
        out[0x8009] = struct.pack("<2H", kinds.index(answer["kind"]), inputs.index(answer["inputs"]))
        if answer["threshold"] is not None:
            out[0x8009] += struct.pack("<f", answer["threshold"])
    if "probes" in task:
        out[0x0001] = struct.pack("<H", len(task["probes"]))
        out[0x0001] += b"".join(struct.pack("<H", label) + ids(probe) for label, probe in task["probes"])
    if "probe_labels" in task:
        out[0x0007] = b"".join(struct.pack(f"<{1 + len(labels)}H", len(labels), *labels) for labels in task["probe_labels"])
    if "metrics" in task:
        out[0x0002] = b"".join(bytes([len(name)]) + name.encode() + struct.pack("<f", value)
                               for name, value in sorted(task["metrics"].items()))
    if "budget" in task:
        out[0x0003] = struct.pack("<4I", *task["budget"].values())
    if "receipt" in task:
        out[0x0004] = json.dumps(task["receipt"]).encode()
    out.update(task.get("unknown", {}))
    return out


def bundle(name, task):
    tensors = task["tensors"]
    decoded = b"".join(one["data"] for one in tensors)
    codec = task.get("codec", "stored")
    stored = {"stored": lambda: decoded, "zstd": lambda: compress(decoded),
              "shuffle+zstd": lambda: compress(shuffled(tensors))}[codec]()
    form = task["form"]
    code, width = (1, form["hidden"]) if form["kind"] == "embeddings" else (2, form["layers"])
    versions = task.get("versions", {})
    trust, security, sequence = versions.get("trust", 1), versions.get("security", 2), versions.get("sequence", 1)
    created, not_after, level = 1_790_000_000, versions.get("not_after", 0), task.get("level", 2)
    manifest = NAMESPACE + BASE + TOKENIZER + sha256(stored) + sha256(decoded)
    manifest += struct.pack("<4I3QI", len(stored), len(decoded), trust, security, sequence, created, not_after, level)
    manifest += struct.pack("<4H4x2H4x", CODECS.index(codec), code, form["tokens"], width, 0, task.get("flags", 0))
    manifest += task["task"].encode().ljust(48, b"\0")
    assert len(manifest) == 256
    for tlv, data in sorted(fields(task, tensors).items()):
        manifest += struct.pack("<2H", tlv, len(data)) + data + b"\0" * (-len(data) % 4)
    manifest += b"\0" * 4
    manifest += b"\0" * (-len(manifest) % 64)
    prefix = CONTEXT + struct.pack("<2H2I20x", task.get("minor", 0), 0, len(manifest), len(stored)) + manifest
    signers = task.get("signers", ["release"])
    entries = sorted(struct.pack("<H6x", 1) + key_of(one)[2] + key_of(one)[0].sign(prefix) for one in signers)
    file = prefix + stored + b"SIG1" + struct.pack("<2H", len(entries), 88) + b"".join(entries)
    order = [key_id for _, _, key_id in sorted((key_of(one) for one in signers), key=lambda key: key[2])]
    known = [one for one in sorted(signers, key=lambda one: key_of(one)[2]) if one != "stranger"]
    own = {"token-linear": "tags", "generation": "text"}.get(task["head"], "label")
    report = {
        "verify": {
            "verified": True, "exit_code": 0, "reason": "verified",
            "message": f"{name}.preface: verified: task {task['task']}, sequence {sequence}, "
                       f"signed by {' and '.join(known)}",
            "bundle_id": sha256(prefix).hex(),
            "checks": [{"name": check, "result": "passed"} for check in CHECKS],
        },
        "inspect": {
            "verified": False, "bundle_id": sha256(prefix).hex(), "bytes": len(file),
            "signature_keys": [key_id.hex() for key_id in order],
            "task": task["task"], "sequence": sequence, "namespace": NAMESPACE.hex(), "base_id": BASE.hex(),
            "tokenizer_id": TOKENIZER.hex(), "trust_version": trust, "security_version": security,
            "created": created, "not_after": not_after, "min_runtime": level, "codec": codec,
            "stored_bytes": len(stored), "decoded_bytes": len(decoded), "form": form,
            "tensors": [{"role": one["role"], "dtype": one["dtype"], "layer": one["layer"], "dims": one["dims"],
                         "group": one["group"], "bytes": len(one["data"])} for one in tensors],
            "head": {"kind": task["head"], "classes": len(task.get("labels", [])), "hidden": task["hidden"]},
            "labels": task.get("labels", []), "template": task.get("template", "{text}"),
            "pooling": task.get("pooling"),
            "positions": ["", "text-from-zero", "after-prompt", "decoder-after-prompt"][task["positions"]],
            "answer": task.get("answer", {"kind": own, "inputs": "one", "threshold": None}),
            "verbaliser": task.get("verbaliser"), "decode": task.get("decode"),
            "probes": len(task.get("probes", [])), "metrics": task.get("metrics", {}),
            "token_budget": task.get("budget"), "receipt": task.get("receipt"),
            "ignored_fields": [f"{tlv:#06x}" for tlv in sorted(task.get("unknown", {}))],
        },
        "values_sha256": [one["values_sha256"] for one in tensors],
    }
    if "probe_labels" in task:
        report["probe_labels"] = task["probe_labels"]
    return file, report


def embeddings(tokens, hidden):
    return {"kind": "embeddings", "tokens": tokens, "hidden": hidden}


def bundles():
    yield "embeddings-f32-stored-linear-mean", {
        "task": "intent", "form": embeddings(3, 8), "level": 1, "head": "linear", "hidden": 8, "positions": 2,
        "tensors": [tensor("embeddings", "f32", [3, 8], 1), tensor("head-weight", "f32", [3, 8], 2),
                    tensor("head-bias", "f32", [3], 3)],
        "labels": ["on", "off", "gedämpft"], "pooling": "mean", "template": "say: {text}\n",
        "probes": [(0, [101, 7, 102]), (2, [101, 4_000_000_000, 102])],
        "metrics": {"dev_accuracy": 0.9375, "test_accuracy": 0.5}, "receipt": {"seed": 0, "method": "prompt-tuning"},
        "budget": {"prompt": 3, "longest": 31, "typical": 9, "positions": 512},
        "versions": {"trust": 3, "security": 4_294_967_295, "sequence": 18_446_744_073_709_551_615},
    }
    yield "embeddings-f16-zstd-verbaliser-mask", {
        "task": "sentiment", "form": embeddings(20, 32), "codec": "zstd", "level": 3, "head": "verbaliser",
        "hidden": 32, "positions": 2, "tensors": [tensor("embeddings", "f16", [20, 32], 4), tensor("head-bias", "f16", [2], 5)],
        "labels": ["good", "bad"], "pooling": "mask", "template": "{text} It was {mask}.",
        "verbaliser": [[2204, 2307], [2919]], "probes": [(1, [101, 103, 102])],
        "answer": {"kind": "label", "inputs": "one", "threshold": 0.25},
    }
    yield "embeddings-bf16-shuffle-factored-last", {
        "task": "topics", "form": embeddings(16, 32), "codec": "shuffle+zstd", "head": "factored-linear",
        "hidden": 32, "positions": 1,
        "tensors": [tensor("embeddings", "bf16", [16, 32], 6), tensor("head-bias", "f32", [4], 7),
                    tensor("head-factor", "bf16", [4, 2], 8), tensor("head-factor", "f16", [2, 32], 9, layer=1)],
        "labels": ["a", "b", "c", "d"], "pooling": "last",
        "answer": {"kind": "labels", "inputs": "one", "threshold": 0.5},
    }
    yield "embeddings-i8-stored-label-text-first", {
        "task": "same-meaning", "form": embeddings(4, 24), "head": "label-text", "hidden": 24, "positions": 2,
        "tensors": [tensor("embeddings", "i8", [4, 24], 10, group=24), tensor("head-bias", "bf16", [2], 11)],
        "labels": ["same", "other"], "pooling": "first",
        "answer": {"kind": "label", "inputs": "pair", "threshold": None},
        "versions": {"not_after": 253_402_300_799},
    }
    yield "embeddings-i4-stored-tanh-linear-prompt", {
        "task": "urgency", "form": embeddings(2, 16), "level": 3, "head": "tanh-linear", "hidden": 16, "positions": 2,
        "tensors": [tensor("embeddings", "i4", [2, 16], 22, group=10), tensor("head-bias", "f32", [5], 23),
                    tensor("head-factor", "i8", [2, 3], 24, group=3),
                    tensor("head-factor", "f16", [3, 16], 25, layer=1)],
        "labels": ["now", "later"], "pooling": "prompt",
    }
    yield "key-values-i4-stored-token-linear", {
        "task": "names", "form": {"kind": "key-values", "tokens": 3, "layers": 3}, "head": "token-linear",
        "hidden": 16, "positions": 1,
        "tensors": [tensor("key-values", "i4", [2, 2, 2, 3, 8], 12, group=8),
                    tensor("key-values", "i8", [1, 2, 1, 3, 8], 13, layer=5, group=10),
                    tensor("head-weight", "i8", [3, 16], 14, group=16), tensor("gate", "f32", [3], 15)],
        "labels": ["O", "B-NAME", "I-NAME"],
    }
    yield "key-values-f16-shuffle-generation", {
        "task": "reply", "form": {"kind": "key-values", "tokens": 8, "layers": 2}, "codec": "shuffle+zstd",
        "head": "generation", "hidden": 0, "positions": 2,
        "tensors": [tensor("key-values", "f16", [2, 2, 2, 8, 8], 16), tensor("gate", "bf16", [2], 17)],
        "decode": {"most_tokens": 64, "stop_ids": [0, 2]}, "template": "Q: {text}\nA:", "probes": [(198, [1, 5])],
    }
    yield "key-values-i8-stored-decoder-generation", {
        "task": "rewrite", "form": {"kind": "key-values", "tokens": 2, "layers": 3}, "level": 4, "head": "generation",
        "hidden": 0, "positions": 3,
        "tensors": [tensor("key-values", "i8", [2, 2, 2, 2, 4], 28, group=8),
                    tensor("key-values", "f16", [1, 2, 1, 2, 4], 29, layer=2)],
        "decode": {"most_tokens": 16, "stop_ids": [1]}, "probes": [(40, [7, 9, 1])],
    }
    yield "embeddings-f32-stored-linear-several-labels", {
        "task": "rooms", "form": embeddings(1, 4), "head": "linear", "hidden": 4, "positions": 2,
        "tensors": [tensor("embeddings", "f32", [1, 4], 26), tensor("head-weight", "f32", [3, 4], 27)],
        "labels": ["hall", "bath", "attic"], "pooling": "mean",
        "answer": {"kind": "labels", "inputs": "one", "threshold": 0.5},
        "probes": [(0, [101, 7, 102]), (1, [101, 9, 102])], "probe_labels": [[0, 2], [1]],
    }
    yield "signatures-of-three-keys", {
        "task": "acme.door", "form": embeddings(1, 4), "level": 1, "head": "linear", "hidden": 4, "positions": 1,
        "tensors": [tensor("embeddings", "f32", [1, 4], 18), tensor("head-weight", "i4", [2, 4], 19, group=4)],
        "labels": ["open", "shut"], "pooling": "mean", "signers": ["second", "stranger", "field"],
    }
    yield "minor-version-of-tomorrow", {
        "task": "a" * 47, "form": embeddings(2, 4), "head": "linear", "hidden": 4, "positions": 2, "minor": 65535,
        "flags": 0x8001, "unknown": {0x0005: b"not known today", 0x7fff: b""},
        "tensors": [tensor("embeddings", "f16", [2, 4], 20), tensor("head-weight", "f16", [1, 4], 21)],
        "labels": ["only"], "pooling": "mean", "answer": {"kind": "labels", "inputs": "pair", "threshold": 1.0},
    }


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    (folder / "trust").write_text(trust_text())
    for name, task in bundles():
        file, report = bundle(name, task)
        (folder / f"{name}.preface").write_bytes(file)
        (folder / f"{name}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
