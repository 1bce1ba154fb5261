//! The table of pre-tokenizers: each name that `tokenizer.ggml.pre` may hold, its rules and what it switches on.

use crate::split::Rule;

/// What a name of `tokenizer.ggml.pre` stands for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pre {
    /// How text is cut into words.
    pub(crate) rules: &'static [Rule],
    /// A word that is a token is taken whole, without merging.
    pub(crate) ignore_merges: bool,
    /// BOS is added unless the metadata says otherwise.
    pub(crate) add_bos: bool,
    /// Id 11, llama.cpp's default, is not taken for a BOS.
    pub(crate) no_default_bos: bool,
    /// SEP is wanted between texts (told to callers; encoding adds none).
    pub(crate) add_sep: bool,
    /// Tokens spell bytes in GPT-2's alphabet; otherwise they are plain text with `▁` for a space.
    pub(crate) byte_level: bool,
    /// A word of line feeds alone that is a token is taken whole.
    pub(crate) whole_line_feeds: bool,
    /// Spaces become `▁` before anything else.
    pub(crate) escape_spaces: bool,
    /// BOS is added whatever the metadata says.
    pub(crate) force_bos: bool,
}

/// Looks a name up; `None` when llama.cpp knows none such.
pub(crate) fn lookup(name: &str) -> Option<Pre> {
    let plain = |rules| Pre {
        rules,
        ignore_merges: false,
        add_bos: false,
        no_default_bos: false,
        add_sep: false,
        byte_level: true,
        whole_line_feeds: false,
        escape_spaces: false,
        force_bos: false,
    };
    let spelled = |rules| Pre { byte_level: false, escape_spaces: true, ..plain(rules) };
    Some(match name {
        "default" => plain(DEFAULT),
        "minicpm5" => Pre { ignore_merges: true, ..plain(MINICPM5) },
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
        | "jina-v5-nano" => Pre { ignore_merges: true, add_bos: true, ..plain(LLAMA3) },
        "deepseek-llm" => plain(DEEPSEEK_LLM),
        "deepseek-coder" => plain(DEEPSEEK_CODER),
        "deepseek-v3" | "hunyuan-dense" | "hy_v4" | "joyai-llm" => plain(DEEPSEEK3),
        "spark2_5" => plain(SPARK2_5),
        "youtu" => Pre { ignore_merges: true, ..plain(YOUTU) },
        "falcon" => plain(FALCON),
        "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b"
        | "mellum2" => plain(STARCODER),
        "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "gigachat" | "jina-v2-es" | "jina-v2-de" | "a.x-4.0"
        | "mellum" | "modern-bert" | "exaone4" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" => {
            plain(GPT2)
        }
        "jina-v1-en" | "jina-v2-code" | "roberta-bpe" => Pre { add_sep: true, ..plain(GPT2) },
        "jais-2" => plain(JAIS2),
        "gemma4" | "granite-embed-multi-311m" => {
            Pre { whole_line_feeds: true, force_bos: true, ..spelled(LINE_FEEDS) }
        }
        "sarvam-moe" => spelled(LINE_FEEDS),
        "whitespace" => Pre { escape_spaces: false, ..spelled(WHITESPACE) },
        "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "stablelm2" | "megrez" | "hunyuan"
        | "grok-2" | "solar-open" => plain(QWEN2),
        "qwen35" => plain(QWEN35),
        "dbrx" | "smaug-bpe" => plain(LLAMA3),
        "poro-chat" | "bloom" | "gpt3-finnish" => plain(PORO),
        "chatglm-bpe" => Pre { no_default_bos: true, ..plain(LLAMA3) },
        "glm4" | "glm5" => Pre { no_default_bos: true, ignore_merges: true, ..plain(LLAMA3) },
        "viking" => plain(VIKING),
        "tekken" => Pre { ignore_merges: true, add_bos: true, ..plain(TEKKEN) },
        "exaone-moe" => plain(EXAONE_MOE),
        "chameleon" => Pre { add_bos: true, ..plain(CHAMELEON) },
        "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => plain(GPT4O),
        "granite-embed-multi-97m" => Pre { ignore_merges: true, ..plain(GRANITE_MULTI) },
        "tiny_aya" | "cohere2moe" => plain(TINY_AYA),
        "superbpe" => plain(SUPERBPE),
        "bailingmoe" | "bailingmoe2" | "llada-moe" => plain(BAILINGMOE),
        "seed-coder" => plain(SEED_CODER),
        "kimi-k2" => plain(KIMI_K2),
        "ufakzeka" => plain(UFAKZEKA),
        "afmoe" => plain(AFMOE),
        "laguna" => plain(LAGUNA),
        _ => return None,
    })
}

/// Every name of the table.
#[cfg(test)]
pub(crate) const NAMES: &[&str] = &[
    "default",
    "minicpm5",
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "hunyuan-dense",
    "hy_v4",
    "joyai-llm",
    "spark2_5",
    "youtu",
    "falcon",
    "starcoder",
    "refact",
    "command-r",
    "smollm",
    "codeshell",
    "exaone",
    "minerva-7b",
    "mellum2",
    "gpt-2",
    "phi-2",
    "jina-es",
    "jina-de",
    "gigachat",
    "jina-v2-es",
    "jina-v2-de",
    "a.x-4.0",
    "mellum",
    "modern-bert",
    "exaone4",
    "mpt",
    "olmo",
    "jais",
    "trillion",
    "granite-docling",
    "jina-v1-en",
    "jina-v2-code",
    "roberta-bpe",
    "jais-2",
    "gemma4",
    "granite-embed-multi-311m",
    "sarvam-moe",
    "whitespace",
    "qwen2",
    "deepseek-r1-qwen",
    "kormo",
    "f2llmv2",
    "stablelm2",
    "megrez",
    "hunyuan",
    "grok-2",
    "solar-open",
    "qwen35",
    "dbrx",
    "smaug-bpe",
    "poro-chat",
    "bloom",
    "gpt3-finnish",
    "chatglm-bpe",
    "glm4",
    "glm5",
    "viking",
    "tekken",
    "exaone-moe",
    "chameleon",
    "gpt-4o",
    "llama4",
    "kanana2",
    "talkie",
    "minimax-m2",
    "granite-embed-multi-97m",
    "tiny_aya",
    "cohere2moe",
    "superbpe",
    "bailingmoe",
    "bailingmoe2",
    "llada-moe",
    "seed-coder",
    "kimi-k2",
    "ufakzeka",
    "afmoe",
    "laguna",
];

// Parts that many share. Contractions are spelled out: ignoring case would let `ſ` count as an s.
macro_rules! contraction {
    () => {
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    };
}
/// A run of letters with one other character before it.
macro_rules! word {
    () => {
        r"[^\r\n\p{L}\p{N}]?\p{L}+"
    };
}
/// Punctuation with a space before and line breaks after, then white space.
macro_rules! rest {
    () => {
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    };
}
/// Words with inner capitals: capitals (and letters without case) before small letters. `$letter` is the class.
macro_rules! camel {
    ($letter:literal, $suffix:expr) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[",
            $letter,
            "&&[^a-z]]*[",
            $letter,
            "&&[^A-Z]]+",
            $suffix,
            r"|[^\r\n\p{L}\p{N}]?[",
            $letter,
            "&&[^a-z]]+[",
            $letter,
            "&&[^A-Z]]*",
            $suffix,
        )
    };
}
/// Punctuation and words of DeepSeek-V3 and its kin, up to the white space.
macro_rules! deepseek3_words {
    () => {
        concat!(
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
            r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
        )
    };
}

/// The ranges that Kimi-K2 takes for Han, some of which hold characters that are no letters.
macro_rules! han {
    ($open:literal) => {
        concat!(
            $open,
            r"\x{4e00}-\x{9fff}\x{3400}-\x{4dbf}\x{20000}-\x{2a6df}\x{2a700}-\x{2ebef}",
            r"\x{f900}-\x{faff}\x{2f800}-\x{2fa1f}]"
        )
    };
}

/// White space gives its last character to the next word, line breaks or not.
const fn spaces(regex: &'static str) -> Rule {
    Rule::Spaces { regex, breaks: false }
}

/// The same, but runs that end in a line break stay whole.
const fn lines(regex: &'static str) -> Rule {
    Rule::Spaces { regex, breaks: true }
}

const GPT2_RULE: Rule = spaces(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+");
const QWEN2_RULE: Rule = lines(concat!(contraction!(), "|", word!(), r"|\p{N}|", rest!()));
const ONE_NUMBER: Rule = Rule::Regex(r"\p{N}");
const THREE_NUMBERS: Rule = Rule::Regex(r"\p{N}{1,3}");
const THREE_DIGITS: Rule = Rule::Regex("[0-9][0-9][0-9]");
const CJK: Rule = Rule::Regex(r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+");

const DEFAULT: &[Rule] =
    &[Rule::Regex(r"[\p{P}\$\+<=>\^~\|]+"), GPT2_RULE, Rule::Regex(r"\p{N}+"), THREE_DIGITS];
const GPT2: &[Rule] = &[GPT2_RULE];
const STARCODER: &[Rule] = &[ONE_NUMBER, GPT2_RULE];
const FALCON: &[Rule] = &[Rule::Regex(r"[\p{P}\$\+<=>\^~\|`]+"), GPT2_RULE, THREE_DIGITS];
const LLAMA3: &[Rule] = &[lines(concat!(contraction!(), "|", word!(), r"|\p{N}{1,3}|", rest!()))];
const QWEN2: &[Rule] = &[QWEN2_RULE];
const QWEN35: &[Rule] = &[lines(concat!(
    contraction!(),
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
))];
const UFAKZEKA: &[Rule] = &[lines(concat!(word!(), r"|\p{N}|", rest!()))];
const LAGUNA: &[Rule] = &[Rule::LineFeeds, QWEN2_RULE];
const MINICPM5: &[Rule] =
    &[THREE_NUMBERS, lines(concat!(contraction!(), "|", word!(), r"|\p{N}+|", rest!()))];
const SEED_CODER: &[Rule] =
    &[lines(concat!(contraction!(), "|", word!(), r"|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+"))];
const BAILINGMOE: &[Rule] = &[lines(concat!(
    "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|",
    word!(),
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+"
))];
const EXAONE_MOE: &[Rule] = &[lines(concat!(
    contraction!(),
    r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+"
))];
/// Here the look-aheads stay: they choose among run lengths.
const JAIS2: &[Rule] = &[Rule::Regex(concat!(
    contraction!(),
    "|",
    word!(),
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
    r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)",
    r"|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"
))];
const DEEPSEEK_LLM: &[Rule] = &[
    Rule::Regex(r"[\r\n]"),
    Rule::Regex(concat!(
        r"\s?[A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}",
        r"\x{295}-\x{2af}\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}",
        r"\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}",
        r"\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}",
        r"\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}",
        r"\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}",
        r"\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}",
        r"\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}",
        r"\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}",
        r"\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}",
        r"\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}",
        r"\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}",
        r"\x{a771}-\x{a787}\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}",
        r"\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3}",
        r"\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}",
        r"\x{1e900}-\x{1e943}]+",
    )),
    Rule::Regex(r"\s?[[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]&&[^\s]]+"),
    Rule::Regex(r"\s+$"),
    Rule::Regex(r"[[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]&&[^\s]]+"),
    Rule::Regex(r"\p{N}+"),
];
const DEEPSEEK_CODER: &[Rule] = &[
    Rule::Regex(r"[\r\n]"),
    Rule::Regex(r"\s?\p{L}+"),
    Rule::Regex(r"\s?\p{P}+"),
    Rule::Regex(r"[[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]&&[^\s]]+"),
    ONE_NUMBER,
];
const DEEPSEEK3: &[Rule] =
    &[THREE_NUMBERS, CJK, lines(concat!(deepseek3_words!(), r"[\r\n]*|\s*[\r\n]+|\s+"))];
const SPARK2_5: &[Rule] =
    &[THREE_NUMBERS, CJK, spaces(concat!(deepseek3_words!(), r"|[\r\n]|\s+")), ONE_NUMBER];
const AFMOE: &[Rule] = &[
    Rule::GroupedNumbers,
    Rule::Regex(
        r"[\x{4e00}-\x{9fff}\x{3400}-\x{4dbf}\x{8c48}-\x{faff}\x{3040}-\x{309f}\x{30a0}-\x{30ff}\x{ff65}-\x{ff9f}\x{2f00}-\x{2fdf}\x{e40}-\x{e7f}\x{e80}-\x{eff}\x{1780}-\x{17ff}\x{1000}-\x{109f}\x{aa60}-\x{aa7f}\x{a9e0}-\x{a9ff}\x{ac00}-\x{d7af}\x{1100}-\x{11ff}]+",
    ),
    lines(concat!(deepseek3_words!(), r"[\r\n]*|\s*[\r\n]+|\s+")),
];
const YOUTU: &[Rule] = &[
    Rule::Regex(
        r"[\x{ac00}-\x{d7a3}\x{3131}-\x{318e}]+|[\x{ff01}\x{2026}\x{201c}\x{201d}\x{2018}\x{2019}\x{2014}\x{ff1a}\x{ff1b}\x{ff0c}\x{3001}-\x{303f}\x{fe30}-\x{fe4f}]+|[\x{3105}-\x{312f}]+|[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+",
    ),
    lines(concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
        contraction!(),
        r"?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+"
    )),
];
const TINY_AYA: &[Rule] = &[
    Rule::GroupedNumbers,
    lines(concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
        contraction!(),
        r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+"
    )),
];
const PORO_RULE: Rule = Rule::Regex(r" ?[^(\s|.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{964}\x{6d4}\x{60c})]+");
const PORO: &[Rule] = &[PORO_RULE];
const VIKING: &[Rule] = &[PORO_RULE, ONE_NUMBER];
const TEKKEN: &[Rule] =
    &[lines(concat!(camel!(r"\p{L}", ""), r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+"))];
const GPT4O: &[Rule] = &[lines(concat!(
    camel!(r"\p{L}", concat!(contraction!(), "?")),
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+"
))];
const GRANITE_MULTI: &[Rule] = &[lines(concat!(
    camel!(r"[\p{L}\p{M}]", concat!(contraction!(), "?")),
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+"
))];
const CHAMELEON: &[Rule] = &[
    Rule::Regex("<sentinel:[0-9]+>"),
    Rule::Regex("IMGIMG[A-I]{1,4}Z"),
    Rule::Regex("[\t\n]|    |  "),
    ONE_NUMBER,
    Rule::Regex(r"[\p{P}!-/:-@\[-`{-~]"),
    GPT2_RULE,
];
const KIMI_K2: &[Rule] = &[lines(concat!(
    han!("["),
    r"+|[^\r\n\p{L}\p{N}]?[\p{L}&&",
    han!("[^"),
    "]+",
    contraction!(),
    r"?|\p{N}{1,3}|",
    rest!()
))];
const SUPERBPE: &[Rule] = &[Rule::Regex(r"\p{N}+"), Rule::Thousands];
const LINE_FEEDS: &[Rule] = &[Rule::LineFeeds];
const WHITESPACE: &[Rule] = &[Rule::Regex(r"\S+")];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::Splitter;

    #[test]
    fn every_name_compiles_and_covers_the_text() {
        let text =
            "Don't  stop\t123456 Ünïcode 日本語、ไทย العربية\n\n  \u{a0}x ÀB<sentinel:12> 각́ 😀\u{3000}।  ";
        for name in NAMES {
            let pre = lookup(name).unwrap();
            let splitter = Splitter::new(pre.rules).unwrap_or_else(|error| panic!("{name}: {error}"));
            let words = splitter.split(text);
            let joined: String = words.iter().map(|range| &text[range.clone()]).collect();
            assert_eq!(joined, text, "{name}");
            assert!(words.len() > 1, "{name}");
        }
        assert!(lookup("llama-bpe ").is_none());
    }
}
