"""The forward pass of llama, qwen2 and qwen3 as their papers define it, in float64 numpy, from the GGUF file alone.

`Reference(path).logits(ids)` are the logits after the last id. With `rounded=True` two roundings that Shoal's engine states are
made and nothing else: rows that meet a quantized matrix are rounded to 8 bits in blocks of 32 (scale: largest magnitude / 127, half to even),
and keys (after rotation) and values to f16. What is left between that and the engine is f32 arithmetic;
`Reference(path, np.float32)` shows how much that is, for a flipped rounding carries further than f32's own error.
"""
import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import GGUFReader, quants

FLOATS = (Q.F32, Q.F16, Q.BF16)


class Reference:
    def __init__(self, path, dtype=np.float64):
        r = GGUFReader(path)
        self.keys = {k: f.contents() for k, f in r.fields.items() if not k.startswith(("GGUF.", "tokenizer."))}
        self.arch = self.keys["general.architecture"]
        self.w = {t.name: quants.dequantize(t.data, t.tensor_type).astype(dtype).reshape(t.shape[::-1]) for t in r.tensors}
        self.quantized = {t.name for t in r.tensors if t.tensor_type not in FLOATS}
        self.types = sorted({t.tensor_type.name for t in r.tensors})
        self.d, self.layers = self.key("embedding_length"), self.key("block_count")
        self.heads = self.key("attention.head_count")
        self.kv_heads = self.key("attention.head_count_kv", self.heads)
        self.head_dim = self.key("attention.key_length", self.d // self.heads)
        self.eps = self.key("attention.layer_norm_rms_epsilon")
        self.dtype = dtype
        self.inv_freq, self.rope_gain = self.frequencies()

    def key(self, name, default=None):
        return self.keys.get(f"{self.arch}.{name}", default)

    def frequencies(self):
        """Radians per position of each rotated pair, and the factor on the rotated vectors (YaRN)."""
        n = self.key("rope.dimension_count", self.head_dim)
        base = self.key("rope.freq_base", 10000.0)
        f = base ** (-np.arange(0, n, 2) / n)
        if "rope_freqs.weight" in self.w:
            f = f / self.w["rope_freqs.weight"]
        kind = self.key("rope.scaling.type", "linear")
        factor = self.key("rope.scaling.factor", self.key("rope.scale_linear", 1.0))
        gain = self.key("rope.scaling.attn_factor", 1.0)
        if kind == "linear":
            return f / factor, gain
        assert kind == "yarn", kind
        orig = self.key("rope.scaling.original_context_length", self.key("context_length"))
        # The pair that turns `turns` times within the original context.
        pair = lambda turns: n * np.log(orig / (turns * 2 * np.pi)) / (2 * np.log(base))
        low, high = max(np.floor(pair(32.0)), 0), min(np.ceil(pair(1.0)), n - 1)
        ramp = np.clip((np.arange(n // 2) - low) / max(high - low, 0.001), 0, 1)
        return f / factor * ramp + f * (1 - ramp), gain * (1 + 0.1 * np.log(factor))

    def logits(self, ids, rounded=False):
        mm = lambda x, name: (round_rows(x) if rounded and name in self.quantized else x) @ self.w[name].T
        norm = lambda x, name: x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.w[name]
        page = (lambda x: x.astype(np.float16).astype(self.dtype)) if rounded else (lambda x: x)
        n, hd = len(ids), self.head_dim
        h = self.w["token_embd.weight"][ids]  # [n, d]
        future = np.triu(np.full((n, n), -np.inf, self.dtype), 1)
        for i in range(self.layers):
            b = f"blk.{i}."
            x = norm(h, b + "attn_norm.weight")
            proj = lambda c: mm(x, f"{b}attn_{c}.weight") + self.w.get(f"{b}attn_{c}.bias", self.dtype(0))
            q, k, v = (proj(c).reshape(n, -1, hd) for c in "qkv")  # [n, heads, hd]
            if b + "attn_q_norm.weight" in self.w:
                q, k = norm(q, b + "attn_q_norm.weight"), norm(k, b + "attn_k_norm.weight")
            q, k, v = self.rotate(q), page(self.rotate(k)), page(v)
            k, v = (np.repeat(t, self.heads // self.kv_heads, axis=1) for t in (k, v))
            s = np.einsum("qhd,khd->hqk", q, k) / self.dtype(np.sqrt(hd)) + future  # [heads, n, n]
            p = np.exp(s - s.max(-1, keepdims=True))
            a = np.einsum("hqk,khd->qhd", p / p.sum(-1, keepdims=True), v).reshape(n, -1)
            h = h + mm(a, b + "attn_output.weight")
            x = norm(h, b + "ffn_norm.weight")
            g = mm(x, b + "ffn_gate.weight")
            h = h + mm(g / (1 + np.exp(-g)) * mm(x, b + "ffn_up.weight"), b + "ffn_down.weight")
        head = "output.weight" if "output.weight" in self.w else "token_embd.weight"
        return mm(norm(h[-1:], "output_norm.weight"), head)[0]

    def rotate(self, x):
        """Turns the pairs of [n, heads, hd]: neighbours for llama, (i, i + half) for qwen; the rest stays."""
        n = 2 * len(self.inv_freq)
        angle = np.arange(len(x))[:, None, None] * self.inv_freq
        cos, sin = ((f(angle) * self.rope_gain).astype(self.dtype) for f in (np.cos, np.sin))
        first, second = (slice(0, n, 2), slice(1, n, 2)) if self.arch == "llama" else (slice(0, n // 2), slice(n // 2, n))
        out, a, b = x.copy(), x[..., first], x[..., second]
        out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
        return out

    def greedy(self, ids, count, rounded=False):
        """Tokens, the second best of each step, and the margin between them."""
        ids, seconds, margins = list(ids), [], []
        for _ in range(count):
            lg = self.logits(ids, rounded)
            order = np.argsort(-lg, kind="stable")
            margins.append(float(lg[order[0]] - lg[order[1]]))
            seconds.append(int(order[1]))
            ids.append(int(order[0]))
        return ids[-count:], seconds, margins


def round_rows(x):
    b = x.reshape(-1, 32)
    scale = (np.abs(b).max(-1, keepdims=True) / 127).astype(np.float32).astype(np.float64)
    q = b / np.where(scale == 0, 1, scale)
    return (np.round(q) * scale).reshape(x.shape).astype(x.dtype)
