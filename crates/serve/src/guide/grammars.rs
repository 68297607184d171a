//! Shapes compiled for one tokenizer.

use super::cache::Cache;
use super::shape::{Shape, Source};
use llguidance::api::ParserLimits;
use llguidance::toktrie::{
    ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie,
};
use llguidance::{Matcher, ParserFactory};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Why nothing is compiled while earlier grammars overrun their time.
pub const BUSY: &str = "earlier grammars still take their time; try again later";

/// Compiling takes no longer than this; the library's fuel usually ends it much earlier.
const COMPILE_TIME: Duration = Duration::from_secs(2);
/// So many compilations may go on beyond their time before no new ones are begun.
const MAX_LATE: usize = 2;
/// The library recurses while it compiles. Only what is used of this is ever taken.
const COMPILE_STACK: usize = 256 << 20;
/// A token longer than this is never part of a shape; the library's tree is not made for it.
const MAX_TOKEN_BYTES: usize = 1000;
/// Compiled grammars that are kept, and bytes that they weigh.
const CACHE_ENTRIES: usize = 64;
const CACHE_BYTES: usize = 64 << 20;
/// What a compiled grammar weighs: at least this, and so much for each byte of its text.
const BASE_WEIGHT: usize = 64 << 10;
const WEIGHT_PER_BYTE: usize = 256;
/// Of a reason, more than this helps nobody.
const MAX_REASON: usize = 600;

/// Compiles shapes for one tokenizer, and keeps the last ones.
pub struct Grammars {
    factory: Arc<ParserFactory>,
    vocabulary: Arc<Vocabulary>,
    cache: Mutex<Cache>,
    /// Compilations that are past their time.
    late: Arc<AtomicUsize>,
}

/// What a guide needs to know of the tokens.
struct Vocabulary {
    stop_token_ids: Vec<u32>,
    all_but_stops: SimpleVob,
    /// Added tokens that text never becomes, by content.
    markers: BTreeMap<String, u32>,
}

/// A shape that is ready to be followed, any number of times.
#[derive(Clone)]
pub struct Compiled {
    vocabulary: Arc<Vocabulary>,
    /// Untouched: every completion gets its own copy, so that none feels what another has used of
    /// the library's limits.
    matcher: Arc<Matcher>,
}

impl Compiled {
    pub(super) fn matcher(&self) -> Matcher {
        self.matcher.deep_clone()
    }

    pub(super) fn stop_token_ids(&self) -> &[u32] {
        &self.vocabulary.stop_token_ids
    }

    pub(super) fn all_but_stops(&self) -> &[u32] {
        self.vocabulary.all_but_stops.as_slice()
    }
}

impl Grammars {
    /// `vocab_size`: the model's, which may be larger than the tokenizer's; `stop_token_ids`: those
    /// that end a completion, at least one.
    ///
    /// # Errors
    /// In words: the tokenizer's tokens are no bytes side by side, or no token can end an answer.
    pub fn new(
        tokenizer: &text::Tokenizer,
        vocab_size: usize,
        stop_token_ids: &[u32],
    ) -> Result<Grammars, String> {
        if !tokenizer.has_token_bytes() {
            return Err(
                "the decoder of this model's tokenizer.json does more than to put tokens \
                        side by side, so no grammar can follow its text"
                    .to_string(),
            );
        }
        let mut stops = stop_token_ids.to_vec();
        stops.retain(|&id| (id as usize) < vocab_size);
        stops.sort_unstable();
        stops.dedup();
        if stops.is_empty() {
            return Err("this model has no stop token, so no grammar could end".to_string());
        }
        let markers = markers(tokenizer, vocab_size, &stops);
        let words = words(tokenizer, vocab_size, &markers);
        let factory = catch_unwind(|| factory(&words, &stops))
            .map_err(|_| "the grammar library panicked over this vocabulary".to_string())??;
        let mut all_but_stops = SimpleVob::alloc_ones(vocab_size);
        for &id in &stops {
            all_but_stops.disallow_token(id);
        }
        Ok(Grammars {
            factory: Arc::new(factory),
            vocabulary: Arc::new(Vocabulary {
                stop_token_ids: stops,
                all_but_stops,
                markers: markers
                    .into_iter()
                    .map(|(id, content)| (content, id))
                    .collect(),
            }),
            cache: Mutex::new(Cache::new(CACHE_ENTRIES, CACHE_BYTES)),
            late: Arc::new(AtomicUsize::new(0)),
        })
    }

    /// Compiles a shape, or finds it compiled. Takes up to two seconds of a thread's time: not for
    /// threads that serve others.
    ///
    /// # Errors
    /// Why the shape cannot be had: it is wrong, asks for what is not supported, is too large or
    /// takes too long, or no text of it can be begun with this vocabulary.
    pub fn compile(&self, shape: &Shape) -> Result<Compiled, String> {
        let source = shape.source(&self.vocabulary.markers)?;
        if let Some(compiled) = self.lock().get(&source) {
            return Ok(compiled);
        }
        let matcher = self.within_time(source.clone())?;
        let compiled = Compiled {
            vocabulary: self.vocabulary.clone(),
            matcher: Arc::new(matcher),
        };
        let bytes = BASE_WEIGHT + source.len() * WEIGHT_PER_BYTE;
        self.lock().insert(source, compiled.clone(), bytes);
        Ok(compiled)
    }

    /// How many compiled grammars are kept, and what they weigh in bytes, by estimate.
    pub fn cached(&self) -> (usize, usize) {
        self.lock().size()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compiles on a thread of its own, which is left alone when its time is over.
    fn within_time(&self, source: Source) -> Result<Matcher, String> {
        if self.late.load(Ordering::Relaxed) >= MAX_LATE {
            return Err(BUSY.to_string());
        }
        // Nothing is sent before somebody receives, so a thread knows whether it is late.
        let (sender, receiver) = sync_channel(0);
        let (factory, late) = (self.factory.clone(), self.late.clone());
        std::thread::Builder::new()
            .name("grammar".to_string())
            .stack_size(COMPILE_STACK)
            .spawn(move || {
                let compiled = catch_unwind(AssertUnwindSafe(|| compile(&factory, &source)))
                    .unwrap_or_else(|_| Err("the grammar library panicked".to_string()));
                if sender.send(compiled).is_err() {
                    late.fetch_sub(1, Ordering::Relaxed);
                }
            })
            .map_err(|error| format!("no thread to compile the grammar: {error}"))?;
        match receiver.recv_timeout(COMPILE_TIME) {
            Ok(compiled) => compiled,
            Err(RecvTimeoutError::Timeout) => {
                self.late.fetch_add(1, Ordering::Relaxed);
                Err("the grammar takes too long to compile; make it smaller".to_string())
            }
            Err(RecvTimeoutError::Disconnected) => Err("the grammar library failed".to_string()),
        }
    }
}

/// Compiles, and takes the first step of a copy, which finds most shapes that nothing can fit.
fn compile(factory: &ParserFactory, source: &Source) -> Result<Matcher, String> {
    if let Source::Calls(_, schemas) = source {
        // One by one first: a reason then names the tool, and no grammar that the client never saw.
        for (name, schema) in schemas {
            compile(factory, &Source::Json(schema.clone()))
                .map_err(|reason| format!("tool {name:?}: {reason}"))?;
        }
    }
    let matcher = Matcher::new(factory.create_parser(source.grammar()?));
    if let Some(error) = matcher.get_error() {
        return Err(shortened(&error));
    }
    let mask = matcher.deep_clone().compute_mask();
    let mask =
        mask.map_err(|error| format!("no answer can fit: {}", shortened(&error.to_string())))?;
    // The white space that may stand in front of JSON says nothing.
    let trie = factory.tok_env().tok_trie();
    let says = |id: u32| !trie.token(id).iter().all(u8::is_ascii_whitespace);
    if matches!(source, Source::Json(_)) && !mask.iter().any(says) {
        return Err("no JSON can fit the schema".to_string());
    }
    Ok(matcher)
}

/// Without the library's marks, and not too long.
pub(super) fn shortened(reason: &str) -> String {
    let reason = reason.replace("<non-verbose/>", "");
    reason.trim().chars().take(MAX_REASON).collect()
}

/// Added tokens that steer rather than spell: special ones, and those that look like a tag.
fn markers(tokenizer: &text::Tokenizer, vocab_size: usize, stops: &[u32]) -> BTreeMap<u32, String> {
    let added = tokenizer.added_tokens().into_iter();
    added
        .filter(|token| (token.id as usize) < vocab_size)
        .filter(|token| {
            let is_tag = token.content.starts_with('<') && token.content.ends_with('>');
            token.special || is_tag || stops.contains(&token.id)
        })
        .map(|token| (token.id, token.content))
        .collect()
}

/// The bytes of each token, in the library's terms: behind 0xFF, which no text has, those that no
/// text becomes; empty, those that never come.
fn words(
    tokenizer: &text::Tokenizer,
    vocab_size: usize,
    markers: &BTreeMap<u32, String>,
) -> Vec<Vec<u8>> {
    let ids = (0..).take(vocab_size);
    ids.map(|id| {
        let bytes = match markers.get(&id) {
            Some(content) => [&[TokTrie::SPECIAL_TOKEN_MARKER], content.as_bytes()].concat(),
            None => {
                let bytes = tokenizer.token_bytes(id).unwrap_or_default();
                match bytes.first() {
                    Some(&TokTrie::SPECIAL_TOKEN_MARKER) => Vec::new(),
                    _ => bytes,
                }
            }
        };
        match bytes.len() {
            0..=MAX_TOKEN_BYTES => bytes,
            _ => Vec::new(),
        }
    })
    .collect()
}

fn factory(words: &[Vec<u8>], stops: &[u32]) -> Result<ParserFactory, String> {
    let info = TokRxInfo::new(words.len() as u32, stops[0]);
    let trie = TokTrie::from(&info, words).with_eos_tokens(stops);
    // It is told that texts have several tokenizations, so it leaves the choice to the model.
    let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let slices = llguidance::earley::SlicedBiasComputer::general_slices();
    let mut factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &slices)
        .map_err(|error| error.to_string())?;
    factory.quiet();
    *factory.limits_mut() = ParserLimits {
        // With the library's own limits, masks of ambiguous grammars take 1 s over 128,000 tokens;
        // these keep the worst near 20 ms. They count work, not time: whether a grammar fails never
        // depends on the machine.
        step_max_items: 10_000,
        max_items_in_row: 1_100,
        initial_lexer_fuel: 500_000,
        // Each state takes one or two kilobytes.
        max_lexer_states: 16 << 10,
        max_grammar_size: 200_000,
        // Grammars and answers do not belong into messages.
        verbose_errors: false,
        ..ParserLimits::default()
    };
    Ok(factory)
}
