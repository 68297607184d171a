//! A small random model with multi-token prediction, requests of every kind for it, and what they
//! gave.

use engine::{
    Allowed, Constraint, Engine, EngineConfig, FinishReason, LogprobsOf, Output, Request,
    SamplingParams, ScoredToken, SequenceId, Speculation, Stats, Submission,
};
use kernels::{Backend, Chance, Cpu, Isa, Precision, Purpose};
use model::{Config, Model, Numerics};
use std::collections::HashMap;

/// Every request runs at once, whole prompts in one batch; nothing is preempted, cached or drafted.
pub const PLAIN: EngineConfig = EngineConfig {
    max_num_seqs: 512,
    max_num_batched_tokens: 8192,
    block_size: 16,
    num_blocks: 2048,
    prefix_caching: false,
    speculation: Speculation {
        prompt_lookup: 0,
        mtp: false,
        max_num_seqs: 0,
    },
};

pub const CACHED: EngineConfig = EngineConfig {
    prefix_caching: true,
    block_size: 4,
    ..PLAIN
};

/// One dense layer and one of four experts; weights large enough that distributions are not flat.
pub fn config(vocab_size: usize) -> Config {
    let json = r#"{
        "model_type": "deepseek_v3", "vocab_size": VOCAB, "hidden_size": 32,
        "intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "n_routed_experts": 4, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "first_k_dense_replace": 1, "q_lora_rank": null,
        "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 12,
        "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.5,
        "num_nextn_predict_layers": 1,
        "max_position_embeddings": 128, "initializer_range": 0.25
    }"#;
    Config::from_json(&json.replace("VOCAB", &vocab_size.to_string())).expect("a configuration")
}

pub fn model(vocab_size: usize, precision: Precision) -> Model {
    let numerics = Numerics::new(precision);
    Model::random(config(vocab_size), numerics, 42, &Cpu::new(2, Isa::best()))
}

pub type Draw<'a> = &'a mut dyn FnMut(u64) -> u64;

pub fn draws(seed: u64) -> impl FnMut(u64) -> u64 {
    println!("draws of seed {seed}");
    Chance::new(seed, Purpose::Problem).draws(0)
}

/// A constraint that can be made again for every run.
#[derive(Clone, Debug)]
pub enum Rule {
    /// Exactly these, then nothing.
    Script(Vec<u32>),
    /// What is allowed depends on the sum of all tokens so far; it ends after so many.
    Whim(usize),
}

pub struct Ruled {
    rule: Rule,
    accepted: Vec<u32>,
    words: Vec<u32>,
}

/// What a [`Rule::Whim`] allows: the word of ids below 32, or one id.
pub fn whim(accepted: &[u32], length: usize) -> Result<Option<[u32; 2]>, u32> {
    let sum: u32 = accepted.iter().sum();
    if accepted.len() >= length {
        return Ok(Some([0, 0]));
    }
    match sum % 4 {
        0 => Ok(None),
        1 => Err(sum % 5),
        _ => Ok(Some([0x5555_5555 << (sum % 2), sum])),
    }
}

impl Constraint for Ruled {
    fn allowed(&mut self) -> Allowed<'_> {
        match &self.rule {
            Rule::Script(script) => match script.get(self.accepted.len()) {
                Some(&token_id) => Allowed::Exactly(token_id),
                None => Allowed::Nothing,
            },
            Rule::Whim(length) => match whim(&self.accepted, *length) {
                Ok(None) => Allowed::Any,
                Err(token_id) => Allowed::Exactly(token_id),
                Ok(Some(words)) => {
                    self.words = words.to_vec();
                    Allowed::Only(&self.words)
                }
            },
        }
    }

    fn accept(&mut self, token_id: u32) {
        self.accepted.push(token_id);
    }
}

/// A submission that can be made again for every run.
#[derive(Clone, Debug)]
pub struct Spec {
    pub request: Request,
    pub cache_salt: u64,
    pub prompt_logprobs: Option<usize>,
    pub rule: Option<Rule>,
    pub client: u64,
}

impl From<Request> for Spec {
    fn from(request: Request) -> Spec {
        Spec {
            request,
            cache_salt: 0,
            prompt_logprobs: None,
            rule: None,
            client: 0,
        }
    }
}

impl Spec {
    pub fn submission(&self) -> Submission {
        let constraint = self.rule.clone().map(|rule| {
            let (accepted, words) = (Vec::new(), Vec::new());
            let ruled = Ruled {
                rule,
                accepted,
                words,
            };
            Box::new(ruled) as Box<dyn Constraint>
        });
        Submission {
            request: self.request.clone(),
            cache_salt: self.cache_salt,
            prompt_logprobs: self.prompt_logprobs,
            constraint,
            client: self.client,
        }
    }
}

/// Parameters of every kind.
pub fn params(draw: Draw, vocab_size: u64) -> SamplingParams {
    let plain = draw(2) == 0;
    let mut one_of = |values: &[f32]| match plain {
        true => values[0],
        false => values[draw(values.len() as u64) as usize],
    };
    let presence_penalty = one_of(&[0.0, 0.0, 1.5, -0.5]);
    let frequency_penalty = one_of(&[0.0, 0.0, 0.7, -0.3]);
    let repetition_penalty = one_of(&[1.0, 1.0, 1.3, 0.8]);
    let biases = if plain { 0 } else { draw(3) };
    let logit_bias =
        (0..biases).map(|i| (vocab_size as u32 - 1 - 2 * i as u32, draw(9) as f32 - 4.0));
    SamplingParams {
        logit_bias: logit_bias.collect(),
        presence_penalty,
        frequency_penalty,
        repetition_penalty,
        temperature: [0.0, 0.0, 0.6, 1.0][draw(4) as usize],
        top_p: [1.0, 1.0, 0.9][draw(3) as usize],
        top_k: [0, 0, 5][draw(3) as usize],
        min_p: [0.0, 0.0, 0.05][draw(3) as usize],
        max_tokens: 1 + draw(30) as usize,
        stop_token_ids: (0..draw(2)).map(|_| draw(vocab_size) as u32).collect(),
        seed: draw(2),
        logprobs: [LogprobsOf::Sampled, LogprobsOf::Raw][draw(2) as usize],
        top_logprobs: [0, 0, 3][draw(3) as usize],
    }
}

/// Requests of every kind; their prompts begin alike, and repeat themselves.
pub fn specs(seed: u64, count: u64, vocab_size: u64) -> Vec<Spec> {
    let draw = &mut draws(seed);
    let texts: Vec<Vec<u32>> = (0..3)
        .map(|_| (0..30).map(|_| draw(vocab_size) as u32).collect())
        .collect();
    let spec = |sequence| {
        let text = &texts[draw(3) as usize];
        let mut prompt = text[..draw(31) as usize].to_vec();
        let again = draw(prompt.len() as u64 + 1) as usize;
        prompt.extend_from_within(again..);
        prompt.truncate(40);
        (0..draw(3)).for_each(|_| prompt.push(draw(vocab_size) as u32));
        if prompt.is_empty() {
            prompt.push(draw(vocab_size) as u32);
        }
        let mut params = params(draw, vocab_size);
        let prompt_logprobs = [None, None, None, Some(0), Some(2)][draw(5) as usize];
        if prompt_logprobs.is_some() && draw(2) == 0 {
            params.max_tokens = 0;
        }
        let script = (0..draw(6)).map(|_| draw(vocab_size) as u32).collect();
        Spec {
            request: Request {
                sequence,
                prompt,
                params,
            },
            cache_salt: draw(2),
            prompt_logprobs,
            rule: match draw(6) {
                0 => Some(Rule::Script(script)),
                1 => Some(Rule::Whim(draw(30) as usize)),
                _ => None,
            },
            client: draw(3),
        }
    };
    (0..count).map(spec).collect()
}

/// All that a sequence gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stream {
    pub cached_tokens: usize,
    pub prompt: Vec<ScoredToken>,
    pub tokens: Vec<ScoredToken>,
    pub finish_reason: Option<FinishReason>,
}

impl Stream {
    pub fn token_ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.token_id).collect()
    }

    /// Tokens and bits, for comparison.
    pub fn bits(&self) -> (Vec<Vec<u32>>, Vec<Vec<u32>>, Option<FinishReason>) {
        let one = |token: &ScoredToken| {
            let mut bits = vec![token.token_id, token.logprob.to_bits()];
            let top = token.top.iter();
            bits.extend(top.flat_map(|&(id, logprob)| [id, logprob.to_bits()]));
            bits
        };
        (
            self.prompt.iter().map(one).collect(),
            self.tokens.iter().map(one).collect(),
            self.finish_reason,
        )
    }
}

/// Puts outputs together by sequence.
#[derive(Default)]
pub struct Streams(pub HashMap<SequenceId, Stream>);

impl Streams {
    pub fn take(&mut self, outputs: Vec<Output>) {
        assert!(outputs.is_sorted_by_key(|output| output.id), "oldest first");
        for output in outputs {
            let is_first = !self.0.contains_key(&output.id);
            let stream = self.0.entry(output.id).or_default();
            assert_eq!(
                output.prompt.is_some(),
                is_first,
                "with the first output only"
            );
            assert_eq!(stream.finish_reason, None, "an output after the last");
            assert!(!output.tokens.is_empty() || output.finish_reason.is_some());
            if let Some(prompt) = output.prompt {
                stream.cached_tokens = prompt.cached_tokens;
                stream.prompt = prompt.logprobs;
            }
            stream.tokens.extend(output.tokens);
            stream.finish_reason = output.finish_reason;
        }
    }
}

/// Runs all, submitted a few at a time by `draw`, and returns their streams in order.
pub fn run(
    engine: &mut Engine,
    model: &Model,
    backend: &dyn Backend,
    specs: &[Spec],
    draw: Draw,
) -> Vec<Stream> {
    let (mut streams, mut ids) = (Streams::default(), Vec::new());
    let mut coming = specs.iter();
    loop {
        let some = draw(specs.len() as u64 + 1) as usize;
        for spec in coming.by_ref().take(some) {
            ids.push(engine.submit(spec.submission()).expect("a valid request"));
        }
        streams.take(engine.advance(model, backend));
        if engine.is_idle() && coming.len() == 0 {
            break;
        }
    }
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting), (0, 0));
    assert_eq!(stats.free_blocks, stats.num_blocks, "a block was lost");
    let stream = |id| {
        streams
            .0
            .remove(id)
            .expect("every sequence gives something")
    };
    ids.iter().map(stream).collect()
}

/// As [`run`], all at once in an engine of its own.
pub fn fresh(
    model: &Model,
    backend: &dyn Backend,
    sizes: EngineConfig,
    specs: &[Spec],
) -> (Vec<Stream>, Stats) {
    let mut engine = Engine::new(&model.config, sizes).expect("valid sizes");
    let streams = run(&mut engine, model, backend, specs, &mut |n| n - 1);
    (streams, engine.stats())
}

/// Each by itself, in an engine that neither caches nor drafts.
pub fn alone(model: &Model, backend: &dyn Backend, specs: &[Spec]) -> Vec<Stream> {
    let one = |spec| fresh(model, backend, PLAIN, std::slice::from_ref(spec)).0;
    specs.iter().flat_map(one).collect()
}

#[track_caller]
pub fn assert_same_bits(got: &[Stream], want: &[Stream], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.bits(), want.bits(), "{what}: request {i}");
    }
}
