"""llama.cpp through ctypes: one thread, CPU, f32 keys and values, no flash attention, no repacking.

LLAMA_LIB_DIR names the folder of a prebuilt libllama 0.5.0 (README.md says from where). The structs below follow its
llama.h; another version needs its own.
"""
import ctypes as C
import glob
import os

DIR = os.environ["LLAMA_LIB_DIR"]
P, i32, u32, f32, b = C.c_void_p, C.c_int32, C.c_uint32, C.c_float, C.c_bool


def struct(name, *spec):
    return type(name, (C.Structure,), {"_fields_": [(n, t) for t, names in spec for n in names.split()]})


ModelParams = struct(
    "ModelParams",
    (P, "devices tensor_buft_overrides"),
    (i32, "n_gpu_layers split_mode load_mode lazy_mode main_gpu"),
    (P, "tensor_split progress_callback progress_user kv_overrides"),
    (b, "vocab_only check_tensors use_extra_bufts no_host no_alloc load_mtp"),
)
ContextParams = struct(
    "ContextParams",
    (u32, "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq"),
    (i32, "n_threads n_threads_batch ctx_type rope_scaling_type pooling_type attention_type flash_attn_type"),
    (f32, "rope_freq_base rope_freq_scale yarn_ext_factor yarn_attn_factor yarn_beta_fast yarn_beta_slow"),
    (u32, "yarn_orig_ctx"),
    (f32, "defrag_thold"),
    (P, "cb_eval cb_eval_user"),
    (i32, "type_k type_v"),
    (P, "abort_callback abort_data"),
    (b, "embeddings offload_kqv no_perf op_offload swa_full kv_unified"),
    (P, "samplers"),
    (C.c_size_t, "n_samplers"),
    (P, "ctx_other"),
)
QuantizeParams = struct(
    "QuantizeParams",
    (i32, "nthread ftype output_tensor_type token_embedding_type"),
    (b, "allow_requantize quantize_output_tensor only_copy pure keep_split dry_run"),
    (P, "imatrix kv_overrides tt_overrides prune_layers"),
    (C.c_size_t, "max_buf_size"),
)
Batch = struct("Batch", (i32, "n_tokens"), (C.POINTER(i32), "token"), (P, "embd pos n_seq_id seq_id logits"))

LOG = C.CFUNCTYPE(None, i32, C.c_char_p, P)
LOG_ERROR = 4


@LOG
def log(level, text, _):
    if level == LOG_ERROR:
        os.write(2, text)


def load():
    one = lambda pattern: C.CDLL(glob.glob(os.path.join(DIR, pattern))[0], C.RTLD_GLOBAL)
    one("libggml-base*.so")
    ggml, lib = one("libggml.v*.so"), one("libllama.v*.so")
    ggml.ggml_backend_load_all_from_path.argtypes = [C.c_char_p]

    def declare(name, result, *arguments):
        f = getattr(lib, name)
        f.restype, f.argtypes = result, list(arguments)

    declare("llama_log_set", None, LOG, P)
    declare("llama_model_default_params", ModelParams)
    declare("llama_context_default_params", ContextParams)
    declare("llama_model_quantize_default_params", QuantizeParams)
    declare("llama_model_quantize", u32, C.c_char_p, C.c_char_p, C.POINTER(QuantizeParams))
    declare("llama_model_load_from_file", P, C.c_char_p, ModelParams)
    declare("llama_init_from_model", P, P, ContextParams)
    declare("llama_model_get_vocab", P, P)
    declare("llama_vocab_n_tokens", i32, P)
    declare("llama_decode", i32, P, Batch)
    declare("llama_get_logits_ith", C.POINTER(f32), P, i32)
    declare("llama_get_memory", P, P)
    declare("llama_memory_clear", None, P, b)
    lib.llama_log_set(log, None)
    ggml.ggml_backend_load_all_from_path(DIR.encode())
    return lib


lib = load()


class Model:
    def __init__(self, path, n_ctx):
        p = lib.llama_model_default_params()
        p.use_extra_bufts, p.n_gpu_layers, p.check_tensors = False, 0, True
        model = lib.llama_model_load_from_file(os.fsencode(path), p)
        if not model:
            raise RuntimeError(f"libllama cannot load {path}")
        self.n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        p = lib.llama_context_default_params()
        p.n_ctx = p.n_batch = p.n_ubatch = n_ctx
        p.n_threads = p.n_threads_batch = p.n_seq_max = 1
        p.flash_attn_type = p.type_k = p.type_v = 0  # off; F32
        p.offload_kqv = p.op_offload = False
        self.context = lib.llama_init_from_model(model, p)
        if not self.context:
            raise RuntimeError(f"libllama cannot make a context for {path}")

    def decode(self, ids):
        """The logits after the last id."""
        batch = Batch(len(ids), (i32 * len(ids))(*ids), None, None, None, None, None)
        if code := lib.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode: {code}")
        return lib.llama_get_logits_ith(self.context, -1)[: self.n_vocab]

    def greedy(self, ids, count):
        """Logits after the prompt; tokens, the second best of each step, the margin between them."""
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        first = logits = self.decode(ids)
        tokens, seconds, margins = [], [], []
        for _ in range(count):
            best, second = sorted(range(self.n_vocab), key=lambda i: (-logits[i], i))[:2]
            tokens.append(best)
            seconds.append(second)
            margins.append(logits[best] - logits[second])
            if len(tokens) < count:
                logits = self.decode([best])
        return first, (tokens, seconds, margins)


def quantize(source, target, ftype, pure):
    """`pure`: every matrix in the one type; else the mixture that llama.cpp makes of the file type."""
    p = lib.llama_model_quantize_default_params()
    p.nthread, p.ftype, p.pure = 1, ftype, pure
    if lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), C.byref(p)):
        raise RuntimeError(f"libllama cannot quantize {source}")
