"""The list of tiny random models and how one is written.

`MODELS` is the whole list: one entry per file. `write(spec, path, tokenizer)` writes a GGUF; weights are random normal numbers
from a seed made of the name, scaled so that attention is uneven and logits spread over a few units.
"""
import struct
import zlib

import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import GGUFReader, GGUFWriter, RopeScalingType, quants

VOCAB = 272  # one whole tile of 256 vocabulary rows and a part of one

# Llama 3's way to stretch low frequencies: factor, low and high frequency factor, context of the training.
LLAMA3 = (8.0, 1.0, 4.0, 64.0)

# The fields, whose defaults are in `spec_of`:
#   heads, kv, hd     query heads, KV heads, values of a head; rot: how many of them turn (default all)
#   d, ffn, layers    width, columns of the feed-forward part, layers; tied: no output matrix of its own
#   base              rotation base (None: no key); freqs: write rope_freqs.weight
#   scaling           rotation scaling metadata; the type "old" stands for the key scale_linear
#   type, version     type of the matrices; version of GGUF
#   ftype             llama.cpp's number of a file type: it quantizes the F32 file, for the gguf package cannot
#   keys_optional     write keys that repeat a default
#   salt              another draw, where the first gave a step with three candidates nearly equal
MODELS = {
    # attention shapes and output heads, architecture llama
    "llama-f32": dict(type="F32", eps=1e-2),
    "llama-untied-v2": dict(tied=False, version=2),
    "llama-heads-6-3-bf16": dict(heads=6, kv=3, d=96, type="BF16"),
    "llama-mha": dict(heads=4, kv=4, base=None, keys_optional=False),
    "llama-mqa": dict(heads=5, kv=1, d=80),
    "llama-head-dim": dict(heads=6, kv=2, hd=24, ffn=80),
    # rotary frequencies
    "llama-rope-llama3": dict(base=500000.0, heads=3, kv=1, hd=32, freqs=True, tied=False),
    "llama-rope-linear": dict(scaling=dict(type="linear", factor=4.0)),
    "llama-rope-yarn": dict(heads=3, kv=1, hd=32, scaling=dict(type="yarn", factor=4.0, orig=16)),
    "llama-rope-yarn-attn": dict(heads=3, kv=1, hd=32, base=500000.0, scaling=dict(type="yarn", factor=8.0, orig=32, attn=0.75)),
    "llama-rope-partial": dict(heads=3, kv=1, hd=32, rot=16),
    # qwen2: biases; qwen3: q/k norms and a head size of its own
    "qwen2-tied": dict(arch="qwen2", base=1000000.0, eps=1e-6),
    "qwen2-untied": dict(arch="qwen2", heads=4, kv=1, tied=False),
    "qwen2-rope-scale-linear": dict(arch="qwen2", scaling=dict(type="old", factor=2.0)),
    "qwen3-tied": dict(arch="qwen3", heads=6, kv=2, hd=24, base=1000000.0, eps=1e-6),
    "qwen3-untied": dict(arch="qwen3", heads=3, kv=3, hd=32, layers=3, tied=False),
    "qwen3-rope-yarn": dict(arch="qwen3", heads=4, kv=2, hd=24, base=1000000.0, scaling=dict(type="yarn", factor=4.0, orig=16)),
    # quantizations with blocks of 32; a head (16 or 48 columns) ends inside a block
    "llama-q8_0": dict(heads=6, kv=3, d=96, ffn=96, type="Q8_0"),
    "llama-q4_0": dict(heads=6, kv=3, d=96, ffn=96, type="Q4_0"),
    "llama-q4_1": dict(heads=4, kv=2, d=96, hd=48, ffn=96, type="Q4_1"),
    "qwen2-q5_0": dict(arch="qwen2", heads=6, kv=3, d=96, ffn=96, type="Q5_0"),
    "qwen3-q5_1": dict(arch="qwen3", heads=3, kv=1, hd=32, d=96, ffn=96, type="Q5_1", tied=False),
    "qwen3-q8_0": dict(arch="qwen3", heads=6, kv=2, hd=32, d=64, ffn=96, type="Q8_0"),
    # K-quants, blocks of 256: several heads lie in one block
    "llama-q2_k": dict(heads=8, kv=2, d=256, hd=32, ffn=256, layers=1, ftype=10, type="Q2_K"),
    "qwen2-q3_k": dict(arch="qwen2", heads=8, kv=2, d=256, hd=32, ffn=256, layers=1, ftype=11, type="Q3_K", salt=1),
    "qwen3-q4_k": dict(arch="qwen3", heads=2, kv=1, d=256, hd=128, ffn=256, layers=1, ftype=14, type="Q4_K"),
    "llama-q5_k": dict(heads=8, kv=2, d=256, hd=32, ffn=256, layers=1, ftype=16, type="Q5_K"),
    "qwen2-q6_k": dict(arch="qwen2", heads=8, kv=2, d=256, hd=32, ffn=256, layers=1, ftype=18, type="Q6_K", salt=2),
    "llama-q4_k_m": dict(heads=8, kv=2, d=256, hd=32, ffn=256, layers=2, ftype=15, type="mixed"),
}


def spec_of(name):
    """The entry of `name` with every field present."""
    s = dict(name=name, arch="llama", heads=4, kv=2, d=64, hd=None, ffn=64, layers=2, tied=True, base=10000.0, eps=1e-5,
             scaling=None, freqs=False, type="F16", version=3, rot=None, ftype=None, salt=0, keys_optional=True)
    s.update(MODELS[name])
    s["hd"] = s["hd"] or s["d"] // s["heads"]
    s["rot"] = s["rot"] or s["hd"]
    return s


def tokenizer_of(path):
    """The first VOCAB tokens of a byte-level BPE vocabulary (its bytes come first) and the merges that make them."""
    fields = GGUFReader(path).fields
    get = lambda k: fields["tokenizer.ggml." + k].contents()
    tokens, types = get("tokens")[:VOCAB], get("token_type")[:VOCAB]
    merges = [m for m in get("merges") if m.replace(" ", "") in set(tokens)]
    return tokens, types, merges


def tensors_of(s):
    """(name, array of f32) in the order of the file."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(s["name"].encode()) + s["salt"]))
    mat = lambda rows, cols, gain: (rng.standard_normal((rows, cols)) * gain / np.sqrt(cols)).astype(np.float32)
    vec = lambda n, mean, spread: (mean + spread * rng.standard_normal(n)).astype(np.float32)
    d, q, kv = s["d"], s["heads"] * s["hd"], s["kv"] * s["hd"]
    yield "token_embd.weight", mat(VOCAB, d, 3.0)
    if s["freqs"]:
        yield "rope_freqs.weight", llama3_factors(s["hd"], s["base"])
    for i in range(s["layers"]):
        b = f"blk.{i}."
        yield b + "attn_norm.weight", vec(d, 1.0, 0.2)
        yield b + "attn_q.weight", mat(q, d, 1.4)
        yield b + "attn_k.weight", mat(kv, d, 1.4)
        yield b + "attn_v.weight", mat(kv, d, 1.5)
        if s["arch"] == "qwen2":
            yield b + "attn_q.bias", vec(q, 0.0, 1.0)
            yield b + "attn_k.bias", vec(kv, 0.0, 1.0)
            yield b + "attn_v.bias", vec(kv, 0.0, 0.5)
        if s["arch"] == "qwen3":
            yield b + "attn_q_norm.weight", vec(s["hd"], 1.3, 0.3)
            yield b + "attn_k_norm.weight", vec(s["hd"], 1.3, 0.3)
        yield b + "attn_output.weight", mat(d, q, 1.5)
        yield b + "ffn_norm.weight", vec(d, 1.0, 0.2)
        yield b + "ffn_gate.weight", mat(s["ffn"], d, 1.5)
        yield b + "ffn_up.weight", mat(s["ffn"], d, 1.5)
        yield b + "ffn_down.weight", mat(d, s["ffn"], 1.5)
    yield "output_norm.weight", vec(d, 1.0, 0.2)
    if not s["tied"]:
        yield "output.weight", mat(VOCAB, d, 3.0)


def llama3_factors(hd, base):
    factor, low, high, context = LLAMA3
    wavelength = 2 * np.pi * base ** (np.arange(0, hd, 2) / hd)
    smooth = np.clip((context / wavelength - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def write(s, path, tokenizer):
    """Writes the model; with `ftype` in F32, for llama.cpp to quantize."""
    w, arch = GGUFWriter(path, s["arch"]), s["arch"]
    w.add_name(s["name"])
    w.add_license("MIT OR Apache-2.0")
    w.add_context_length(256)
    w.add_embedding_length(s["d"])
    w.add_block_count(s["layers"])
    w.add_feed_forward_length(s["ffn"])
    w.add_head_count(s["heads"])
    if s["keys_optional"] or s["kv"] != s["heads"]:
        w.add_head_count_kv(s["kv"])
    w.add_layer_norm_rms_eps(s["eps"])
    if s["hd"] * s["heads"] != s["d"]:
        w.add_key_length(s["hd"])
        w.add_value_length(s["hd"])
    if s["keys_optional"] and arch == "llama":
        w.add_rope_dimension_count(s["rot"])
        w.add_vocab_size(VOCAB)
    if s["base"] is not None:
        w.add_rope_freq_base(s["base"])
    r = s["scaling"]
    if r and r["type"] == "old":
        w.add_float32(arch + ".rope.scale_linear", r["factor"])
    elif r:
        w.add_rope_scaling_type(RopeScalingType(r["type"]))
        w.add_rope_scaling_factor(r["factor"])
        if "orig" in r:
            w.add_rope_scaling_orig_ctx_len(r["orig"])
        if "attn" in r:
            w.add_rope_scaling_attn_factors(r["attn"])
    tokens, types, merges = tokenizer
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges(merges)
    w.add_bos_token_id(0)
    w.add_eos_token_id(0)
    w.add_add_bos_token(True)
    kind = Q.F32 if s["ftype"] else Q[s["type"]]
    for name, a in tensors_of(s):
        if a.ndim == 1 or kind == Q.F32:
            w.add_tensor(name, a)
        else:
            w.add_tensor(name, quants.quantize(a, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    if s["version"] == 2:  # v2 and v3 differ in this number alone
        with open(path, "r+b") as f:
            f.seek(4)
            f.write(struct.pack("<I", 2))
