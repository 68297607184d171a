//! Tokenizers, chance, and walks through what a guide allows.

use engine::{Allowed, Constraint};
use serve::guide::{Compiled, Grammars, Guide, Shape};
use text::{Tokenizer, TokenizerParts, tokenizer_json};

#[path = "../../../text/tests/byte_level/mod.rs"]
mod byte_level;

/// A model's vocabulary is padded.
pub const PADDING: usize = 37;

pub struct Fixture {
    pub tokenizer: Tokenizer,
    pub vocab_size: usize,
    pub stop: u32,
    pub grammars: Grammars,
}

impl Fixture {
    fn new(parts: &TokenizerParts) -> Fixture {
        let tokenizer = Tokenizer::from_json(&tokenizer_json(parts).unwrap()).unwrap();
        let stop = tokenizer.token_to_id(byte_level::EOS).unwrap();
        let vocab_size = tokenizer.id_bound() as usize + PADDING;
        let grammars = Grammars::new(&tokenizer, vocab_size, &[stop]).unwrap();
        Fixture {
            tokenizer,
            vocab_size,
            stop,
            grammars,
        }
    }

    /// Bytes and a few words.
    pub fn plain() -> Fixture {
        Fixture::new(&byte_level::parts("qwen2"))
    }

    /// As before, with pieces of JSON and with the markers of tool calls as tokens.
    pub fn with_markers() -> Fixture {
        let mut parts = byte_level::parts("qwen2");
        for (first, second) in [
            ("{", "\""),
            ("\"", ":"),
            ("\"", "}"),
            ("\"", ","),
            ("}", "}"),
        ] {
            parts.tokens.push(format!("{first}{second}"));
            parts.token_types.push(1);
            parts.merges.push(format!("{first} {second}"));
        }
        for format in [text::ToolFormat::DeepSeek, text::ToolFormat::Hermes] {
            for marker in format.markers() {
                parts.tokens.push(marker.to_string());
                parts.token_types.push(4);
            }
        }
        Fixture::new(&parts)
    }

    pub fn compile(&self, shape: &Shape) -> Compiled {
        match self.grammars.compile(shape) {
            Ok(compiled) => compiled,
            Err(reason) => panic!("{shape:?}: {reason}"),
        }
    }

    pub fn guide(&self, shape: &Shape) -> Guide {
        Guide::new(None, Some(self.compile(shape)))
    }

    /// Whether a guide lets a text through, and lets it end there.
    pub fn takes(&self, shape: &Shape, text: &str) -> bool {
        let mut guide = self.guide(shape);
        for id in self.tokenizer.encode(text).unwrap() {
            if !allows(guide.allowed(), id) {
                return false;
            }
            guide.accept(id);
        }
        let stop = self.stop;
        match guide.allowed() {
            Allowed::Nothing => guide.failure().get().is_none(),
            allowed => allows(allowed, stop),
        }
    }

    /// The text of a walk, if it came to its end.
    pub fn walk(&self, guide: &mut Guide, chance: &mut Chance) -> Option<String> {
        let mut ids = Vec::new();
        for _ in 0..4000 {
            let choice = match guide.allowed() {
                Allowed::Nothing => {
                    assert_eq!(guide.failure().get(), None);
                    return Some(self.tokenizer.decode(&ids, false).unwrap());
                }
                Allowed::Exactly(id) => id,
                Allowed::Any => panic!("free in a grammar"),
                Allowed::Only(words) => self.choose(words, chance),
            };
            guide.accept(choice);
            if choice == self.stop {
                assert!(matches!(guide.allowed(), Allowed::Nothing));
            } else {
                ids.push(choice);
            }
        }
        None
    }

    /// Any of those allowed; but rather one that leads to an end, where there is one.
    fn choose(&self, words: &[u32], chance: &mut Chance) -> u32 {
        let ids: Vec<u32> = (0..self.vocab_size as u32)
            .filter(|&id| allows(Allowed::Only(words), id))
            .collect();
        let set: u32 = words.iter().map(|word| word.count_ones()).sum();
        assert_eq!(set as usize, ids.len(), "bits beyond the vocabulary");
        assert!(
            ids.iter().all(|&id| id < self.tokenizer.id_bound()),
            "padding"
        );
        assert!(!ids.is_empty());
        if chance.below(3) == 0 {
            let closing = ids.iter().copied().filter(|&id| {
                let bytes = self.tokenizer.token_bytes(id).unwrap();
                id == self.stop || matches!(bytes[0], b'"' | b'}' | b']' | b'x')
            });
            let closing: Vec<u32> = closing.collect();
            if !closing.is_empty() {
                return closing[chance.below(closing.len())];
            }
        }
        ids[chance.below(ids.len())]
    }
}

pub fn allows(allowed: Allowed<'_>, id: u32) -> bool {
    match allowed {
        Allowed::Any => true,
        Allowed::Exactly(only) => only == id,
        Allowed::Nothing => false,
        Allowed::Only(words) => {
            let word = words.get(id as usize / 32).copied().unwrap_or(0);
            word >> (id % 32) & 1 == 1
        }
    }
}

/// Marsaglia's xorshift; the seed is printed.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        println!("seed {seed:#x}");
        Chance(seed)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % bound
    }
}
