"""Writes the tiny models and their references: `build.py OUT VOCAB.gguf [NAME ...]`.

Without LLAMA_LIB_DIR there is no llama.cpp: its fields are null, and the K-quants cannot be made.
"""
import json
import os
import sys
import tempfile

import numpy as np

import models
from reference import Reference

PROMPTS = ((5, 11), (40, 12))  # length, seed
N_PREDICT = 16
N_CTX = 256
NEAR_TIE = 0.5  # beyond the noise of two ways to round activations
DIFFS = ("max_diff_llamacpp_f64", "max_diff_rounded_f64", "max_diff_rounded_in_f32")


def main():
    out, vocab, names = sys.argv[1], sys.argv[2], sys.argv[3:] or list(models.MODELS)
    cpp = __import__("llama_cpp") if "LLAMA_LIB_DIR" in os.environ else None
    tokenizer = models.tokenizer_of(vocab)
    for name in names:
        spec, path = models.spec_of(name), os.path.join(out, name + ".gguf")
        if spec["ftype"] is None:
            models.write(spec, path, tokenizer)
        else:
            if cpp is None:
                print(f"{name}: left out, needs LLAMA_LIB_DIR")
                continue
            with tempfile.TemporaryDirectory() as tmp:
                whole = os.path.join(tmp, "f32.gguf")
                models.write(spec, whole, tokenizer)
                cpp.quantize(whole, path, spec["ftype"], pure=spec["type"] != "mixed")
        write_reference(name, spec, path, cpp)


def write_reference(name, spec, path, cpp):
    ref, ref_f32 = Reference(path), Reference(path, np.float32)
    model = None
    if cpp and spec["rot"] == spec["hd"]:  # llama.cpp refuses a partial rotation for these architectures
        model = cpp.Model(path, N_CTX)
    cases = [case(ref, ref_f32, model, length, seed) for length, seed in PROMPTS]
    text = json.dumps({
        "model": name + ".gguf", "types": ref.types, "n_ctx": N_CTX, "n_predict": N_PREDICT,
        **{k: worst(cases, k) for k in DIFFS}, "cases": cases}, separators=(",", ":"))
    with open(path[: -len("gguf")] + "json", "w") as f:
        f.write(text + "\n")
    size = os.path.getsize(path) // 1024
    print(f"| {name} | {size} | {' '.join(ref.types)} |", " | ".join(str(worst(cases, k)) for k in DIFFS), "|")


def case(ref, ref_f32, model, length, seed):
    ids = np.random.Generator(np.random.PCG64(seed)).integers(1, models.VOCAB, length).tolist()
    exact, rounded = ref.logits(ids), ref.logits(ids, rounded=True)
    c = {"prompt": ids, "logits_f64": short(exact), "logits_rounded": short(rounded), "logits_llamacpp": None,
         "max_diff_rounded_f64": diff(exact, rounded), "max_diff_llamacpp_f64": None,
         "max_diff_rounded_in_f32": diff(rounded, ref_f32.logits(ids, rounded=True)),
         "greedy_f64": steps(*ref.greedy(ids, N_PREDICT)),
         "greedy_rounded": steps(*ref.greedy(ids, N_PREDICT, rounded=True)), "greedy_llamacpp": None}
    if model:
        logits, greedy = model.greedy(ids, N_PREDICT)
        c["logits_llamacpp"], c["greedy_llamacpp"] = short(logits), steps(*greedy)
        c["max_diff_llamacpp_f64"] = diff(exact, logits)
        check_near_ties(ref, ids, c["greedy_llamacpp"])
    return c


def check_near_ties(ref, ids, greedy):
    """Along llama.cpp's tokens the rounded reference must choose one of its top two, another one only near a tie."""
    ids = list(ids)
    for i, token in enumerate(greedy["tokens"]):
        own = int(np.argmax(ref.logits(ids, rounded=True)))
        assert own == token or own == greedy["seconds"][i] and greedy["margins"][i] < NEAR_TIE, f"step {i}: draw again"
        ids.append(token)


def steps(tokens, seconds, margins):
    return {"tokens": tokens, "seconds": seconds, "margins": [float(f"{m:.4g}") for m in margins]}


def short(values):
    return [float(f"{v:.6g}") for v in values]


def diff(a, b):
    return float(f"{np.abs(np.asarray(a) - np.asarray(b)).max():.3g}")


def worst(cases, field):
    return max((c[field] for c in cases if c[field] is not None), default=None)


if __name__ == "__main__":
    main()
