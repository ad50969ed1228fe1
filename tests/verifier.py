#!/usr/bin/env python3
"""A second verifier, written from bundle/FORMAT.md alone, to hold the first against: same verdict, same identity.

    verifier.py TRUST BASE_ID TOKENIZER_ID < FRAMES > VERDICTS

FRAMES are bundles, each behind its length as 4 bytes, little-endian. Each line of VERDICTS is the exit code of
`preface verify`, the id of a bundle that is verified, and the SHA-256 of what its payload decoded to, each `-` where
there is none. Needs the package `cryptography` and libzstd.so.1.
Slow, and clear: it is the format that is tested, not this program.
"""

import base64
import ctypes
import ctypes.util
import hashlib
import math
import re
import struct
import sys
import unicodedata
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

CONTEXT = b"\x89PRF\r\n\x1a\nsoft-prompt-bundle-v001\n"
MALFORMED, UNTRUSTED, BAD_SIGNATURE, DIGEST, OTHER, ROLLBACK, EXPIRED, REVOKED = 10, 11, 12, 13, 14, 15, 16, 17
LEVEL = 4
NOW = 4_000_000_000
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,46}\Z")
WIDTHS = {1: 4, 2: 2, 3: 2}
ORDER = 2**252 + 27742317777372353535851937790883648493


class Refused(Exception):
    """The exit code."""


def need(holds, code=MALFORMED):
    if not holds:
        raise Refused(code)


def sha256(data):
    return hashlib.sha256(data).digest()


def is_name(text):
    return bool(NAME.match(text)) and ".." not in text


class Reader:
    def __init__(self, data):
        self.data = data

    def take(self, count):
        need(count <= len(self.data))
        head, self.data = self.data[:count], self.data[count:]
        return head

    def number(self, size):
        return int.from_bytes(self.take(size), "little")

    def numbers(self, size, count):
        return [self.number(size) for _ in range(count)]

    def zeros(self, count):
        need(not any(self.take(count)))

    def text(self, count):
        try:
            return self.take(count).decode()
        except UnicodeDecodeError:
            raise Refused(MALFORMED) from None

    def end(self):
        need(not self.data)


class Trust:
    """What the trust store says; the store itself is taken to be valid."""

    def __init__(self, text):
        self.keys, self.revoked_keys, self.revoked_bundles, self.minimum = {}, set(), set(), 0
        for line in text.splitlines()[1:]:
            word, *rest = line.split()
            if word == "key":
                key = base64.b64decode(rest[0].removeprefix("ed25519:"))
                options = dict(one.split("=") for one in rest[1:])
                key_id = sha256(b"preface-key-v1\0ed25519\0" + key)[:16]
                self.keys[key_id] = (key, options.get("tasks", "*").split(","))
            elif word == "revoke-key":
                self.revoked_keys.add(bytes.fromhex(rest[0]))
            elif word == "revoke-bundle":
                self.revoked_bundles.add(bytes.fromhex(rest[0]))
            elif word == "namespace":
                self.namespace = sha256(b"preface-namespace-v1\0" + rest[0].encode())[:16]
            elif word == "version":
                self.version = int(rest[0])
            elif word == "threshold":
                self.threshold = int(rest[0])
            elif word == "min-security":
                self.minimum = int(rest[0])

    def may_sign(self, key_id, task):
        patterns = self.keys[key_id][1]
        return any(one in ("*", task) or one.endswith(".*") and task.startswith(one[:-1]) for one in patterns)


def has_signed(key, message, signature):
    if int.from_bytes(signature[32:], "little") >= ORDER:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
        return True
    except (InvalidSignature, ValueError):
        return False


def frame(file):
    need(file[:32] == CONTEXT)
    reader = Reader(file[32:])
    reader.take(2)
    reader.zeros(2)
    manifest, payload = reader.numbers(4, 2)
    reader.zeros(20)
    need(256 <= manifest <= 4032 and manifest % 64 == 0 and 1 <= payload <= 1 << 20)
    manifest, payload = reader.take(manifest), reader.take(payload)
    need(reader.take(4) == b"SIG1")
    count, size = reader.numbers(2, 2)
    need(1 <= count <= 8 and size == 88)
    entries = []
    for _ in range(count):
        need(reader.number(2) == 1)
        reader.zeros(6)
        entries.append((reader.take(16), reader.take(64)))
    reader.end()
    need(all(a[0] < b[0] for a, b in zip(entries, entries[1:])))
    return file[: 64 + len(manifest)], manifest, payload, entries


def signatures(trust, prefix, entries):
    good, revoked = [], False
    for key_id, signature in entries:
        if key_id in trust.keys:
            need(has_signed(trust.keys[key_id][0], prefix, signature), BAD_SIGNATURE)
        if key_id in trust.revoked_keys:
            revoked = True
        elif key_id in trust.keys:
            good.append(key_id)
    if len(good) < trust.threshold:
        need(not revoked, REVOKED)
        # A signature of a known key under another id was changed on its way.
        unknown = [signature for key_id, signature in entries if key_id not in trust.keys]
        forged = any(has_signed(key, prefix, one) for key, _ in trust.keys.values() for one in unknown)
        raise Refused(BAD_SIGNATURE if forged else UNTRUSTED)
    return good


def control(text, allowed=""):
    return any(unicodedata.category(one) == "Cc" and one not in allowed for one in text)


def counted(reader):
    return reader.numbers(4, reader.number(2))


def single(data, low, high):
    reader = Reader(data)
    code = reader.number(2)
    reader.zeros(2)
    reader.end()
    need(low <= code <= high)
    return code


def probes(data):
    reader, out = Reader(data), []
    for _ in range(reader.number(2)):
        out.append(reader.number(2))
        out[-1] = (out[-1], len(counted(reader)))
        need(out[-1][1])
    need(out)
    reader.end()
    return out


def probe_answers(data):
    reader, out = Reader(data), []
    while reader.data:
        second = reader.number(2)
        tags = [reader.numbers(2, 2) for _ in range(reader.number(2))]
        need(not control(reader.text(reader.number(2)), "\n\t"))
        out.append((second, tags))
    return out


def probe_labels(data):
    reader, out = Reader(data), []
    while reader.data:
        out.append([reader.number(2) for _ in range(reader.number(2))])
        need(out[-1] and out[-1] == sorted(set(out[-1])))
    return out


def metrics(data):
    reader, names = Reader(data), []
    while reader.data:
        name = reader.text(reader.number(1))
        (value,) = struct.unpack("<f", reader.take(4))
        need(is_name(name) and math.isfinite(value) and (not names or names[-1] < name.encode()))
        names.append(name.encode())
    need(names)


def budget(data):
    need(len(data) == 16)


def receipt(data):
    text = Reader(data).text(len(data))
    need(text.startswith("{") and text.endswith("}") and not control(text))


def labels(data):
    reader, out = Reader(data), []
    for _ in range(reader.number(2)):
        label = reader.text(reader.number(1))
        need(label and not control(label) and label not in out)
        out.append(label)
    reader.end()
    need(out)
    return out


def head(data):
    reader = Reader(data)
    kind, classes, hidden = reader.numbers(2, 3)
    reader.zeros(2)
    reader.end()
    need(1 <= kind <= 7)
    return kind, classes, hidden


def template(data):
    text = Reader(data).text(len(data))
    need(not control(text, "\n\t") and text.count("{text}") == 1)
    return text


def verbaliser(data):
    reader = Reader(data)
    count = reader.number(2)
    for _ in range(count):
        need(counted(reader))
    need(count)
    reader.end()
    return count


def limits(data):
    reader = Reader(data)
    need(reader.number(2) >= 1)
    counted(reader)
    reader.end()
    return True


def answer(data):
    reader = Reader(data)
    kind, inputs = reader.numbers(2, 2)
    threshold = struct.unpack("<f", reader.take(4))[0] if reader.data else None
    reader.end()
    need(1 <= kind <= 4 and 1 <= inputs <= 2)
    need(threshold is None or 0 <= threshold <= 1 and math.copysign(1, threshold) > 0)
    need(not (kind == 3 and inputs == 2) and not (kind == 2 and threshold is None))
    need(kind <= 2 or threshold is None)
    return kind, inputs, threshold


FIELDS = {
    0x0001: probes, 0x0002: metrics, 0x0003: budget, 0x0004: receipt, 0x0006: probe_answers, 0x0007: probe_labels,
    0x8001: lambda data: data, 0x8002: labels, 0x8003: head, 0x8004: template, 0x8005: lambda data: single(data, 1, 5), 0x8006: lambda data: single(data, 1, 3),
    0x8007: verbaliser, 0x8008: limits, 0x8009: answer,
}


def typed(reader):
    out, last = {}, 0
    while True:
        tlv, size = reader.numbers(2, 2)
        data = reader.take(size)
        reader.zeros(-size % 4)
        if tlv == 0:
            need(size == 0 and len(reader.data) < 64 and not any(reader.data))
            return out
        need(tlv > last)
        last = tlv
        if tlv in FIELDS:
            out[tlv] = FIELDS[tlv](data)
        else:
            need(tlv < 0x8000)


def tensors(data, decoded):
    need(data and len(data) % 32 == 0)
    out, place, last = [], 0, None
    for at in range(0, len(data), 32):
        reader = Reader(data[at : at + 32])
        role, dtype, layer, rank, zero, group = *reader.numbers(2, 3), *reader.numbers(1, 2), reader.number(2)
        dims, offset, size, tail = reader.numbers(2, 5), *reader.numbers(4, 3)
        need(1 <= role <= 6 and 1 <= dtype <= 5 and 1 <= rank <= 5 and zero == 0 and tail == 0)
        need(all(dims[:rank]) and not any(dims[rank:]))
        dims = dims[:rank]
        need(rank == {1: 2, 2: 5, 3: 2, 4: 1, 5: 2, 6: 1}[role])
        need(role != 2 or dims[1] == 2)
        need(role != 6 or dtype <= 3)
        need(layer == 0 or role == 2 or role == 5 and layer == 1)
        need(role != 2 or layer + dims[0] <= 65535)
        count = math.prod(dims)
        if dtype <= 3:
            need(group == 0)
            expected = count * WIDTHS[dtype]
        else:
            need(1 <= group <= count)
            need(dtype == 4 or group % 2 == 0 and count % 2 == 0)
            expected = -(-count // group) * 2 + (count if dtype == 4 else count // 2)
        need(size == expected and offset == place)
        place += size
        if last:
            need((role, layer) > (last[0], last[1]) and (role != last[0] or role in (2, 5)))
            need(not (role == last[0] == 2) or layer >= last[1] + last[2][0])
        last = (role, layer, dims)
        out.append((role, dtype, layer, dims, group, offset, size, count))
    need(place == decoded)
    return out


def manifest(data, payload):
    reader = Reader(data)
    out = {"namespace": reader.take(16)}
    for name in ("base", "tokenizer", "stored_sha", "decoded_sha"):
        out[name] = reader.take(32)
    stored, decoded, out["trust"], out["security"] = reader.numbers(4, 4)
    out["sequence"], _, out["not_after"] = reader.numbers(8, 3)
    out["level"] = reader.number(4)
    codec, form, tokens, width = reader.numbers(2, 4)
    reader.zeros(4)
    need(reader.number(2) == 0)
    reader.take(2)
    reader.zeros(4)
    task = reader.take(48)
    need(1 <= stored <= 1 << 20 and 1 <= decoded <= 8 << 20 and stored == payload and codec <= 2)
    need(1 <= form <= 2 and tokens and width and (codec or stored == decoded))
    name, _, padding = task.partition(b"\0")
    need(len(name) < 48 and name.isascii() and is_name(name.decode()) and not any(padding))
    fields = typed(reader)
    need(0x8001 in fields and 0x8003 in fields and 0x8006 in fields)
    table = tensors(fields[0x8001], decoded)
    of = lambda role: [one for one in table if one[0] == role]
    dims = lambda role: [one[3] for one in of(role)]
    if form == 1:
        need(dims(1) == [[tokens, width]] and not of(2) and not of(6))
    else:
        need(not of(1) and sum(one[0] for one in dims(2)) == width and all(one[3] == tokens for one in dims(2)))
        need(dims(6) in ([], [[width]]))
    need(fields[0x8006] != 3 or form == 2 and all(one[2] + one[3][0] <= width for one in of(2)))
    kind, classes, hidden = fields[0x8003]
    need(len(fields.get(0x8002, [])) == classes and (kind == 6) == (classes == 0))
    need(dims(3) == ([[classes, hidden]] if kind in (1, 5) else []))
    factors = dims(5)
    inner = factors[0][1] if kind == 7 and factors else 0
    need(dims(4) in ([], [[classes + inner]]))
    if kind in (3, 7):
        need(len(factors) == 2 and factors[0][0] == classes and factors[1] == [factors[0][1], hidden])
    else:
        need(not factors)
    pooling = fields.get(0x8005)
    need(kind not in (1, 3, 4, 7) or pooling)
    need(pooling != 4 or "{mask}" in fields.get(0x8004, "{text}"))
    need(pooling != 5 or form == 1 and fields[0x8006] == 2)
    need(fields.get(0x8007, 0) == (classes if kind == 2 else 0))
    need((0x8008 in fields) == (kind == 6))
    probed = fields.get(0x0001, [])
    need(kind == 6 or all(label < classes for label, _ in probed))
    if 0x0006 in fields:
        need(probed and len(probed) == len(fields[0x0006]))
        for (_, ids), (second, tags) in zip(probed, fields[0x0006]):
            places = [place for place, _ in tags]
            need(second < ids and all(place < ids for place in places) and places == sorted(set(places)))
            need(all(label < classes for _, label in tags))
    if 0x0007 in fields:
        need(probed and len(probed) == len(fields[0x0007]) and fields.get(0x8009, (0,))[0] == 2)
        need(all(label == labels[0] and labels[-1] < classes for (label, _), labels in zip(probed, fields[0x0007])))
    own = {5: 3, 6: 4}.get(kind, 1)
    if 0x8009 in fields:
        plan = fields[0x8009]
        need(plan != (own, 1, None) and (plan[0] == own or plan[0] == 2 and own == 1))
    out.update(codec=codec, decoded=decoded, task=name.decode(), table=table)
    return out


def admit(trust, core, bundle_id, base, tokenizer):
    need(core["namespace"] == trust.namespace, OTHER)
    need(core["base"] == base and core["tokenizer"] == tokenizer, OTHER)
    need(bundle_id not in trust.revoked_bundles, REVOKED)
    need(core["trust"] <= trust.version, UNTRUSTED)
    need(core["security"] >= trust.minimum, ROLLBACK)
    # Nothing is installed, and it is always the same time.
    need(core["not_after"] == 0 or NOW <= core["not_after"], EXPIRED)
    need(core["level"] <= LEVEL, OTHER)


def zstd_frame(data, decoded):
    """RFC 8878, section 3.1.1: one frame that says what it holds, and nothing else."""
    reader = Reader(data)
    need(reader.number(4) == 0xFD2FB528)
    descriptor = reader.number(1)
    need(descriptor & 0b11111 == 0)
    alone, size = descriptor & 0b100000, descriptor >> 6
    window = 0
    if not alone:
        byte = reader.number(1)
        window = (1 << 10 + (byte >> 3)) * (8 + (byte & 7)) // 8
    need(alone or size)
    content = reader.number([1, 2, 4, 8][size]) + (256 if size == 1 else 0)
    need(content == decoded and (window or content) <= 1 << 20)
    while True:
        header = reader.number(3)
        length, kind = header >> 3, header >> 1 & 3
        need(length <= 128 << 10 and kind != 3)
        reader.take(1 if kind == 1 else length)
        if header & 1:
            return reader.end()


def decompress(data, decoded):
    zstd_frame(data, decoded)
    zstd = ctypes.CDLL(ctypes.util.find_library("zstd") or "libzstd.so.1")
    zstd.ZSTD_decompress.restype = ctypes.c_size_t
    out = ctypes.create_string_buffer(decoded)
    size = ctypes.c_size_t
    written = zstd.ZSTD_decompress(out, size(decoded), data, size(len(data)))
    need(written == decoded)
    return out.raw


def decode(core, payload):
    if core["codec"] == 0:
        return payload
    out = decompress(payload, core["decoded"])
    if core["codec"] == 1:
        return out
    whole = b""
    for _, dtype, _, _, _, offset, size, count in core["table"]:
        part, width = out[offset : offset + size], WIDTHS.get(dtype, 1)
        planes = [part[plane * count : (plane + 1) * count] for plane in range(width)] if width > 1 else [part]
        whole += bytes(byte for value in zip(*planes) for byte in value)
    return whole


def values(core, decoded):
    for _, dtype, _, _, group, offset, size, count in core["table"]:
        data = decoded[offset : offset + size]
        if dtype <= 3:
            wide = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, size, 2)) if dtype == 3 else data
            sane = struct.iter_unpack("<e" if dtype == 2 else "<f", wide)
            need(all(abs(value) <= 10000 for (value,) in sane))
            continue
        groups = -(-count // group)
        largest = 127 if dtype == 4 else 8
        for (scale,) in struct.iter_unpack("<e", data[: 2 * groups]):
            need(2**-14 <= scale and scale * largest <= 10000)
        need(dtype == 5 or 0x80 not in data[2 * groups :])


def verify(trust, base, tokenizer, file, seen):
    prefix, data, payload, entries = frame(file)
    good = signatures(trust, prefix, entries)
    core = manifest(data, len(payload))
    need(sum(trust.may_sign(key_id, core["task"]) for key_id in good) >= trust.threshold, UNTRUSTED)
    bundle_id = sha256(prefix)
    admit(trust, core, bundle_id, base, tokenizer)
    need(sha256(payload) == core["stored_sha"], DIGEST)
    decoded = decode(core, payload)
    seen.append(sha256(decoded).hex())
    need(seen == [core["decoded_sha"].hex()], DIGEST)
    values(core, decoded)
    return bundle_id


def main():
    trust = Trust(Path(sys.argv[1]).read_text())
    base, tokenizer = (bytes.fromhex(text) for text in sys.argv[2:4])
    while length := sys.stdin.buffer.read(4):
        file = sys.stdin.buffer.read(int.from_bytes(length, "little"))
        seen, code, bundle_id = [], 0, "-"
        try:
            bundle_id = verify(trust, base, tokenizer, file, seen).hex()
        except Refused as refused:
            code = refused.args[0]
        print(code, bundle_id, *seen or "-")


if __name__ == "__main__":
    main()
