"""Reads what Burn writes as `.bpk`: a header in CBOR, then tensors.

Where a tensor lies in the file, and the number that a parameter has in a process, differ between two runs of one recipe;
what this gives does not.
"""

import hashlib
import re
import struct

HEAD = 10  # `NRUB`, a version of 2 bytes, the length of the header in 4
ALIGNED = 256


def contents(path):
    """Everything in `optimizer.bpk` or `trained.bpk`, by the parameters' paths, in one text."""
    names = {}
    trained = path.with_name("trained.bpk")
    if trained.exists():
        for name, about in header(trained.read_bytes())[0]["tensors"].items():
            names[str(about.get("param_id"))] = name
    data = path.read_bytes()
    metadata, begin = header(data)
    found = []
    for name, about in metadata.pop("tensors").items():
        first, last = about["data_offsets"]
        digest = hashlib.sha256(data[begin + first:begin + last]).hexdigest()
        found.append(f"{named(name, names)} {about['dtype']} {about['shape']} {digest}")
    found += [f"{key} {inner}" for key, inner in renamed(metadata, names).items()]
    return "\n".join(sorted(found)).encode()


def named(name, names):
    return re.sub(r"^\d+", lambda number: names.get(number[0], number[0]), name)


def renamed(value, names):
    if isinstance(value, dict):
        return {named(str(key), names): renamed(value[key], names) for key in sorted(value, key=lambda key: named(str(key), names))}
    return value


def header(data):
    """The header, and where tensors begin."""
    if data[:4] != b"NRUB":
        raise ValueError("it is no .bpk file")
    (length,) = struct.unpack("<I", data[6:HEAD])
    value, end = cbor(data, HEAD)
    if end != HEAD + length:
        raise ValueError("its header is not as long as it says")
    return value, -(-end // ALIGNED) * ALIGNED


def cbor(data, at):
    """One value and where it ends: the part of CBOR that is used here."""
    kind, small = data[at] >> 5, data[at] & 31
    at += 1
    if kind == 7:
        if small in (20, 21, 22):
            return {20: False, 21: True, 22: None}[small], at
        size, form = {25: (2, ">e"), 26: (4, ">f"), 27: (8, ">d")}[small]
        return struct.unpack(form, data[at:at + size])[0], at + size
    if small < 24:
        n = small
    else:
        size = 1 << (small - 24)
        n, at = int.from_bytes(data[at:at + size], "big"), at + size
    if kind == 0:
        return n, at
    if kind == 1:
        return -1 - n, at
    if kind in (2, 3):
        raw = data[at:at + n]
        return (raw if kind == 2 else raw.decode()), at + n
    if kind == 4:
        values = []
        for _ in range(n):
            value, at = cbor(data, at)
            values.append(value)
        return values, at
    if kind == 5:
        values = {}
        for _ in range(n):
            key, at = cbor(data, at)
            values[key], at = cbor(data, at)
        return values, at
    raise ValueError(f"a value of kind {kind}")
