"""Write a GGUF file of a real model's shape, with random weights: memory and speed do not depend on their values.

    python benchmarks/make_large_gguf.py OUT.gguf [--shape 8b|1b|smollm2] [--type q4_k_m|q4_0|q8_0] [--layers N] [--seed 0]

`8b` is Llama 3.1 8B, `1b` Llama 3.2 1B, `smollm2` SmolLM2-135M; `--layers` cuts the model short. Each matrix has the
format that llama.cpp's quantiser gives it in a file of that type: in q4_k_m, half of the layers have Q6_K in attn_v and
ffn_down, and rows that are not whole blocks of 256 fall back to Q5_0 and Q8_0.

The blocks are random bytes with scales such that the weights are around 0 with a standard deviation of 0.02; norms are
around 1. The tokenizer is a byte-level BPE of the right size whose merges are made up: any text can be tokenised, to
some three characters a token. Nothing larger than a chunk of a tensor is in memory. Needs gguf and numpy.
"""

import argparse
import itertools
import time
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, LlamaFileType, TokenType

CHUNK = 32 << 20  # bytes
DEVIATION = 0.02


class Shape(NamedTuple):
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool
    context: int
    theta: float
    rope_factor: float | None  # Llama 3's, None where frequencies are not scaled
    pre: str
    special: int

    @property
    def head_dim(self):
        return self.hidden // self.heads


SHAPES = {
    "8b": Shape(128256, 4096, 14336, 32, 32, 8, False, 131072, 500000.0, 8.0, "llama-bpe", 256),
    "1b": Shape(128256, 2048, 8192, 16, 32, 8, True, 131072, 500000.0, 32.0, "llama-bpe", 256),
    "smollm2": Shape(49152, 576, 1536, 30, 9, 3, True, 8192, 100000.0, None, "smollm", 17),
}
FILE_TYPES = {
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
}
# Where rows are not whole blocks of 256.
INSTEAD = {Type.Q4_K: Type.Q5_0, Type.Q6_K: Type.Q8_0}


# ---- blocks --------------------------------------------------------------------------------------------------------


def put(blocks, at, values):
    """16-bit floats at a place of every block."""
    blocks[:, at : at + 2] = values.astype(np.float16).view(np.uint8).reshape(-1, 2)


def signed(random, count, size):
    """Numbers around `size`, of both signs, so that formats whose quants lean to one side have mean 0."""
    return size * random.uniform(0.75, 1.25, count) * random.choice([-1.0, 1.0], count)


def scale_of(kind, blocks, random):
    """Gives blocks of random bytes the scales that make numbers of standard deviation DEVIATION of them."""
    count = len(blocks)
    if kind == Type.Q8_0:  # d·q, q in -128..127
        put(blocks, 0, signed(random, count, DEVIATION / 74))
    elif kind == Type.Q4_0:  # d·(q - 8)
        put(blocks, 0, signed(random, count, DEVIATION / 4.6))
    elif kind == Type.Q5_0:  # d·(q - 16)
        put(blocks, 0, signed(random, count, DEVIATION / 9.2))
    elif kind == Type.Q6_K:  # d·scale·(q - 32), 16 scales of int8
        scales = random.integers(32, 128, (count, 16)) * random.choice([-1, 1], (count, 16))
        blocks[:, 192:208] = scales.astype(np.int8).view(np.uint8)
        put(blocks, 208, signed(random, count, DEVIATION / (18.5 * 84)))
    elif kind == Type.Q4_K:  # d·scale·q - dmin·min; min = scale and dmin = 7.5·d make it d·scale·(q - 7.5)
        scales = random.integers(32, 64, (count, 8)).astype(np.uint8)
        low, high = scales[:, :4], scales[:, 4:]
        blocks[:, 4:8] = blocks[:, 8:12] = low | (high >> 4) << 6
        blocks[:, 12:16] = (high & 15) | (high & 15) << 4
        d = (DEVIATION / (4.6 * 48) * random.uniform(0.75, 1.25, count)).astype(np.float16)
        put(blocks, 0, d)
        put(blocks, 2, 7.5 * d)
    else:
        raise ValueError(kind)


def chunks(kind, rows, columns, random):
    """The bytes of a matrix, a piece at a time."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    left = rows * columns // elements
    while left:
        count = min(left, CHUNK // size)
        blocks = np.frombuffer(random.bytes(count * size), np.uint8).reshape(count, size).copy()
        scale_of(kind, blocks, random)
        yield blocks
        left -= count


# ---- tensors -------------------------------------------------------------------------------------------------------


def more_bits(layer, layers):
    """llama.cpp's `use_more_bits`: the first and the last eighth, and every third layer between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def tensors(shape, layers, given):
    """(name, rows, columns, format) in the order of a file; vectors have no rows."""
    main = {"q4_k_m": Type.Q4_K, "q4_0": Type.Q4_0, "q8_0": Type.Q8_0}[given]
    head = Type.Q8_0 if given == "q8_0" else Type.Q6_K
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def matrix(name, rows, columns, kind):
        fits = columns % gguf.GGML_QUANT_SIZES[kind][0] == 0
        return f"{name}.weight", rows, columns, kind if fits else INSTEAD[kind]

    def vector(name, length):
        return f"{name}.weight", None, length, Type.F32

    if shape.rope_factor:
        yield vector("rope_freqs", shape.head_dim // 2)
    yield matrix("token_embd", shape.vocabulary, shape.hidden, head if shape.tied else main)
    for i in range(layers):
        better = Type.Q6_K if given == "q4_k_m" and more_bits(i, layers) else main
        yield vector(f"blk.{i}.attn_norm", shape.hidden)
        yield matrix(f"blk.{i}.ffn_down", shape.hidden, shape.intermediate, better)
        yield matrix(f"blk.{i}.ffn_gate", shape.intermediate, shape.hidden, main)
        yield matrix(f"blk.{i}.ffn_up", shape.intermediate, shape.hidden, main)
        yield vector(f"blk.{i}.ffn_norm", shape.hidden)
        yield matrix(f"blk.{i}.attn_k", keys, shape.hidden, main)
        yield matrix(f"blk.{i}.attn_output", shape.hidden, queries, main)
        yield matrix(f"blk.{i}.attn_q", queries, shape.hidden, main)
        yield matrix(f"blk.{i}.attn_v", keys, shape.hidden, better)
    yield vector("output_norm", shape.hidden)
    if not shape.tied:
        yield matrix("output", shape.vocabulary, shape.hidden, head)


def llama3_factors(shape):
    """By what each rotary frequency is divided: `generate_extra_tensors` of llama.cpp's conversion/llama.py."""
    low, high, original = 1.0, 4.0, 8192
    wavelengths = 2 * np.pi * shape.theta ** (np.arange(0, shape.head_dim, 2) / shape.head_dim)
    smooth = (original / wavelengths - low) / (high - low)
    blended = 1 / ((1 - smooth) / shape.rope_factor + smooth)
    factors = np.where(wavelengths > original / low, shape.rope_factor, blended)
    return np.where(wavelengths < original / high, 1.0, factors).astype(np.float32)


# ---- metadata ------------------------------------------------------------------------------------------------------


def byte_alphabet():
    """GPT-2's character for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (chr(256 + nth) for nth in itertools.count())
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


def vocabulary(shape):
    """Tokens, their types and the merges: bytes, then strings of 2, 3 and 4 frequent letters, then control tokens."""
    tokens, merges = byte_alphabet(), []
    letters = "Ġetaoinshrdlucmfwypvbgkjqxz.,T"
    shorter = list(letters)
    while len(tokens) < shape.vocabulary - shape.special:
        pairs = itertools.product(shorter, letters)
        pairs = list(itertools.islice(pairs, shape.vocabulary - shape.special - len(tokens)))
        merges += [f"{head} {letter}" for head, letter in pairs]
        shorter = [head + letter for head, letter in pairs]
        tokens += shorter
    control = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    control += [f"<|reserved_special_token_{i}|>" for i in range(shape.special - len(control))]
    types = [TokenType.NORMAL] * len(tokens) + [TokenType.CONTROL] * len(control)
    return tokens + control, types, merges


TEMPLATE = (
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def describe(writer, shape, layers, given):
    writer.add_type("model")
    writer.add_name(f"random weights, shape {given.shape}")
    writer.add_file_type(FILE_TYPES[given.type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.theta)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    tokens, types, merges = vocabulary(shape)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(shape.pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    begin = shape.vocabulary - shape.special
    writer.add_bos_token_id(begin)
    writer.add_eos_token_id(begin + 2)
    writer.add_pad_token_id(begin + 1)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--type", choices=FILE_TYPES, default="q4_k_m")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    shape, random, start = SHAPES[given.shape], np.random.default_rng(given.seed), time.perf_counter()
    layers = given.layers or shape.layers
    if not 1 <= layers <= shape.layers:
        parser.error(f"--layers must be from 1 to {shape.layers}")
    given.out.parent.mkdir(parents=True, exist_ok=True)

    writer = GGUFWriter(given.out, "llama")
    describe(writer, shape, layers, given)
    every, values = list(tensors(shape, layers, given.type)), 0
    for name, rows, columns, kind in every:
        size = [columns] if rows is None else [rows, columns]
        elements, block = gguf.GGML_QUANT_SIZES[kind]
        count = int(np.prod(size))
        values += 0 if name == "rope_freqs.weight" else count
        # The package wants the shape in bytes of what is packed.
        stored = size if kind == Type.F32 else [rows, columns // elements * block]
        dtype = np.dtype(np.float32 if kind == Type.F32 else np.uint8)
        writer.add_tensor_info(name, stored, dtype, count // elements * block, raw_dtype=None if kind == Type.F32 else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    for name, rows, columns, kind in every:
        begin = file.tell()
        if name == "rope_freqs.weight":
            file.write(llama3_factors(shape).tobytes())
        elif rows is None:
            file.write((1 + 0.05 * random.standard_normal(columns)).astype(np.float32).tobytes())
        else:
            for blocks in chunks(kind, rows, columns, random):
                file.write(blocks.data)
        writer.write_padding(file, file.tell() - begin)
    writer.close()
    kinds = sorted({kind.name for *_, kind in every})
    print(f"{given.out}: {given.out.stat().st_size / 1e9:.3f} GB, {values / 1e6:,.1f} M weights in "
          f"{len(every)} tensors ({', '.join(kinds)}), {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
