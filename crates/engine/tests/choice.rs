//! What is chosen, how it is scored, and what is refused: against the definitions in f64, and one
//! forward over the whole text.

use engine::{
    Allowed, Constraint, Engine, EngineConfig, Error, FinishReason, LogprobsOf, Request,
    SamplingParams, ScoredToken, Speculation, Submission,
};
use kernels::{Chance, Cpu, Isa, Precision, Purpose};
use model::{Activations, Batch, Model, Targets};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

mod small;
use small::{
    CACHED, PLAIN, Rule, Spec, Stream, Streams, alone, assert_same_bits, fresh, model, specs, whim,
};

const VOCAB: usize = 64;

/// Logits after every token of a text, and the log-probability bits of any targets.
struct Whole<'a> {
    model: &'a Model,
    backend: Cpu,
    acts: Activations,
    logits: Vec<f32>,
}

impl Whole<'_> {
    fn new<'a>(model: &'a Model, text: &[u32]) -> Whole<'a> {
        let backend = Cpu::new(1, Isa::best());
        let mut acts = Activations::new(&model.config);
        model.forward(&backend, &Batch::documents(&[text]), &mut acts, None);
        let rows: Vec<u32> = (0..text.len() as u32).collect();
        let mut logits = Vec::new();
        model.logits(&backend, &mut acts, &rows, &mut logits);
        Whole {
            model,
            backend,
            acts,
            logits,
        }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.logits[row * VOCAB..(row + 1) * VOCAB]
    }

    fn logprobs(&mut self, row: usize, token_ids: &[u32]) -> Vec<f32> {
        let targets = Targets {
            rows: vec![row as u32; token_ids.len()],
            token_ids: token_ids.to_vec(),
        };
        let (mut logprobs, mut entropies) = (Vec::new(), Vec::new());
        let (l, e) = (&mut logprobs, &mut entropies);
        let (backend, acts) = (&self.backend, &mut self.acts);
        self.model.logprobs(backend, acts, &targets, 1.0, l, e);
        logprobs
    }

    /// A token's alternatives, against a full sort.
    fn check_top(&mut self, row: usize, token: &ScoredToken, count: usize) {
        let mut ids: Vec<u32> = (0..VOCAB as u32).collect();
        let logits = self.row(row);
        let logit = |id: u32| logits[id as usize];
        ids.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
        ids.truncate(count);
        let logprobs = self.logprobs(row, &ids);
        let want: Vec<(u32, u32)> = ids
            .into_iter()
            .zip(logprobs.iter().map(|l| l.to_bits()))
            .collect();
        let got: Vec<(u32, u32)> = token.top.iter().map(|&(id, l)| (id, l.to_bits())).collect();
        assert_eq!(got, want);
    }
}

/// Logits as parameters and rule change them; minus infinity where not allowed.
fn adjusted(row: &[f32], spec: &Spec, completion: &[u32]) -> Vec<f64> {
    let params = &spec.request.params;
    let mut row: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
    for &(id, bias) in &params.logit_bias {
        row[id as usize] += f64::from(bias);
    }
    let mut counts: BTreeMap<u32, f64> = BTreeMap::new();
    completion
        .iter()
        .for_each(|&id| *counts.entry(id).or_default() += 1.0);
    for id in 0..row.len() as u32 {
        let logit = &mut row[id as usize];
        if spec.request.prompt.contains(&id) || counts.contains_key(&id) {
            let penalty = f64::from(params.repetition_penalty);
            *logit *= if *logit > 0.0 { 1.0 / penalty } else { penalty };
        }
        if let Some(count) = counts.get(&id) {
            *logit -= count * f64::from(params.frequency_penalty);
            *logit -= f64::from(params.presence_penalty);
        }
    }
    let is_allowed = |id: u32| match &spec.rule {
        None => true,
        Some(Rule::Script(script)) => script[completion.len()] == id,
        Some(Rule::Whim(length)) => match whim(completion, *length) {
            Ok(None) => true,
            Err(only) => id == only,
            Ok(Some(words)) => words[id as usize / 32] >> (id % 32) & 1 == 1,
        },
    };
    for id in 0..row.len() as u32 {
        if !is_allowed(id) {
            row[id as usize] = f64::NEG_INFINITY;
        }
    }
    row
}

fn softmax(row: &[f64], temperature: f64) -> Vec<f64> {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = row
        .iter()
        .map(|x| ((x - most) / temperature).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// The ids that top-k, top-p and min-p keep, in order.
fn kept(p: &[f64], params: &SamplingParams) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..p.len()).collect();
    ids.sort_by(|&a, &b| p[b].total_cmp(&p[a]).then(a.cmp(&b)));
    if params.top_k > 0 {
        ids.truncate(params.top_k);
    }
    let mass: f64 = ids.iter().map(|&id| p[id]).sum();
    let most = p[ids[0]];
    let mut sum = 0.0;
    let mut left = Vec::new();
    for id in ids {
        if sum >= f64::from(params.top_p) * mass && params.top_p < 1.0 {
            break;
        }
        sum += p[id];
        if p[id] >= f64::from(params.min_p) * most {
            left.push(id);
        }
    }
    left.sort_unstable();
    left
}

/// One token against the definitions, in f64.
fn check_token(whole: &mut Whole, spec: &Spec, completion: &[u32], token: &ScoredToken) {
    let params = &spec.request.params;
    let row = spec.request.prompt.len() + completion.len() - 1;
    let logits = adjusted(whole.row(row), spec, completion);
    let chosen = token.token_id as usize;
    let temperature = match params.temperature {
        0.0 => 1.0,
        temperature => f64::from(temperature),
    };
    let p = softmax(&logits, temperature);
    if params.temperature == 0.0 {
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        assert!(logits[chosen] > most - 1e-5, "{params:?}");
    } else {
        let chance = Chance::new(params.seed, Purpose::Sampling);
        let uniform = chance.uniform(spec.request.sequence, completion.len() as u32);
        let kept = kept(&p, params);
        assert!(kept.contains(&chosen), "{params:?}");
        let mass: f64 = kept.iter().map(|&id| p[id]).sum();
        let below = kept.iter().filter(|&&id| id < chosen).map(|&id| p[id]);
        let below = below.sum::<f64>() / mass;
        assert!(below <= uniform + 1e-5, "{below} {uniform} {params:?}");
        assert!(below + p[chosen] / mass >= uniform - 1e-5, "{params:?}");
    }
    match params.logprobs {
        LogprobsOf::Sampled => {
            let difference = (f64::from(token.logprob) - p[chosen].ln()).abs();
            assert!(
                difference < 1e-4,
                "{} {} {params:?}",
                token.logprob,
                p[chosen].ln()
            );
        }
        LogprobsOf::Raw => {
            let want = whole.logprobs(row, &[token.token_id])[0];
            assert_eq!(token.logprob.to_bits(), want.to_bits());
        }
    }
    whole.check_top(row, token, params.top_logprobs);
}

#[test]
fn every_choice_is_that_of_the_definitions() {
    let model = model(VOCAB, Precision::F32);
    let specs = specs(21, 120, VOCAB as u64);
    let (streams, _) = fresh(&model, &Cpu::new(2, Isa::best()), PLAIN, &specs);
    let threads = Cpu::new(1, Isa::best());
    assert_same_bits(&streams, &alone(&model, &threads, &specs), "together");
    let (mut tokens, mut penalized, mut ruled) = (0, 0, 0);
    for (spec, stream) in specs.iter().zip(&streams) {
        let completion = stream.token_ids();
        let text = [&spec.request.prompt[..], &completion].concat();
        let mut whole = Whole::new(&model, &text);
        for (i, token) in stream.tokens.iter().enumerate() {
            check_token(&mut whole, spec, &completion[..i], token);
        }
        let (params, n) = (&spec.request.params, completion.len());
        tokens += n;
        let changes = params.repetition_penalty != 1.0 || params.frequency_penalty != 0.0;
        penalized += if changes { n } else { 0 };
        ruled += if spec.rule.is_some() { n } else { 0 };
        check_end(spec, stream);
    }
    assert!(
        tokens > 800 && penalized > 200 && ruled > 100,
        "{tokens} {penalized} {ruled}"
    );
}

/// A completion ends for the reason it says, and not before.
fn check_end(spec: &Spec, stream: &Stream) {
    let (params, completion) = (&spec.request.params, stream.token_ids());
    let n = completion.len();
    let stop = completion
        .iter()
        .position(|id| params.stop_token_ids.contains(id));
    let is_over = |n: usize| match &spec.rule {
        None => false,
        Some(Rule::Script(script)) => n == script.len(),
        Some(Rule::Whim(length)) => n == *length,
    };
    let stopped = stop == Some(n.wrapping_sub(1)) && n > 0;
    let expected = if stopped || (is_over(n) && n < params.max_tokens) {
        FinishReason::Stop
    } else {
        assert_eq!(n, params.max_tokens);
        FinishReason::Length
    };
    assert_eq!(stream.finish_reason, Some(expected), "{spec:?}");
    assert!(stop.is_none_or(|stop| stop + 1 == n), "{spec:?}");
}

#[test]
fn scores_of_a_prompt_are_those_of_one_forward() {
    for precision in [Precision::F32, Precision::Bf16] {
        let model = model(VOCAB, precision);
        let mut specs = specs(22, 40, VOCAB as u64);
        for (i, spec) in specs.iter_mut().enumerate() {
            spec.prompt_logprobs = Some([0, 3, 100][i % 3]);
        }
        let mut sizes = CACHED;
        for max_num_batched_tokens in [8192, 13] {
            sizes.max_num_batched_tokens = max_num_batched_tokens;
            let backend = Cpu::new(2, Isa::best());
            let (streams, _) = fresh(&model, &backend, sizes, &specs);
            let mut empty = 0;
            for (spec, stream) in specs.iter().zip(&streams) {
                let prompt = &spec.request.prompt;
                let mut whole = Whole::new(&model, prompt);
                assert_eq!(stream.prompt.len(), prompt.len() - 1);
                for (i, token) in stream.prompt.iter().enumerate() {
                    assert_eq!(token.token_id, prompt[i + 1]);
                    let want = whole.logprobs(i, &[token.token_id])[0];
                    assert_eq!(token.logprob.to_bits(), want.to_bits());
                    whole.check_top(i, token, spec.prompt_logprobs.unwrap_or(0));
                }
                if spec.request.params.max_tokens == 0 {
                    assert_eq!(stream.finish_reason, Some(FinishReason::Length));
                    assert!(stream.tokens.is_empty());
                    empty += 1;
                }
            }
            assert!(empty > 3, "{empty}");
        }
    }
}

/// Writes down what it is asked and told.
struct Witness {
    log: Arc<Mutex<Vec<Option<u32>>>>,
    nothing_after: usize,
}

impl Constraint for Witness {
    fn allowed(&mut self) -> Allowed<'_> {
        let mut log = self.log.lock().expect("one thread");
        log.push(None);
        match log.iter().flatten().count() == self.nothing_after {
            true => Allowed::Nothing,
            false => Allowed::Any,
        }
    }

    fn accept(&mut self, token_id: u32) {
        self.log.lock().expect("one thread").push(Some(token_id));
    }
}

/// Also where drafts are tried and thrown away.
#[test]
fn a_constraint_is_asked_once_and_told_once_for_each_token() {
    let (model, backend) = (model(6, Precision::F32), Cpu::new(1, Isa::best()));
    let speculation = Speculation {
        prompt_lookup: 8,
        mtp: true,
        max_num_seqs: 8,
    };
    let sizes = EngineConfig {
        speculation,
        ..PLAIN
    };
    for nothing_after in [0, 1, 7, 33, 99] {
        let mut engine = Engine::new(&model.config, sizes).expect("valid sizes");
        let log = Arc::new(Mutex::new(Vec::new()));
        let params = SamplingParams {
            temperature: 0.0,
            max_tokens: 60,
            stop_token_ids: Vec::new(),
            ..SamplingParams::default()
        };
        let request = Request {
            sequence: 0,
            prompt: vec![1, 2, 3, 1, 2],
            params,
        };
        let constraint = Witness {
            log: log.clone(),
            nothing_after,
        };
        let submission = Submission {
            constraint: Some(Box::new(constraint)),
            ..request.into()
        };
        let id = engine.submit(submission).expect("a valid request");
        let mut streams = Streams::default();
        while !engine.is_idle() {
            streams.take(engine.advance(&model, &backend));
        }
        let stream = &streams.0[&id];
        let mut expected: Vec<Option<u32>> = Vec::new();
        for token_id in stream.token_ids() {
            expected.extend([None, Some(token_id)]);
        }
        let ends = nothing_after < 60;
        expected.extend(ends.then_some(None));
        assert_eq!(*log.lock().expect("one thread"), expected);
        assert_eq!(stream.tokens.len(), nothing_after.min(60));
        let reason = if ends {
            FinishReason::Stop
        } else {
            FinishReason::Length
        };
        assert_eq!(stream.finish_reason, Some(reason));
        assert!(nothing_after < 33 || engine.stats().accepted_draft_tokens > 5);
    }
}

enum Mask {
    Words(Vec<u32>),
    One(u32),
}

impl Constraint for Mask {
    fn allowed(&mut self) -> Allowed<'_> {
        match self {
            Mask::Words(words) => Allowed::Only(words),
            Mask::One(id) => Allowed::Exactly(*id),
        }
    }

    fn accept(&mut self, _: u32) {}
}

#[test]
fn masks_of_any_length_are_obeyed_and_impossible_ones_end_the_completion() {
    let (model, backend) = (model(40, Precision::F32), Cpu::new(1, Isa::best()));
    let cases: [(Mask, &[u32]); 8] = [
        (Mask::Words(vec![0b1010]), &[1, 3]),
        (Mask::Words(vec![0, 1]), &[32]),
        (Mask::Words(vec![1 << 31, 1 << 7, u32::MAX]), &[31, 39]),
        (Mask::One(39), &[39]),
        (Mask::One(40), &[]),
        (Mask::Words(vec![]), &[]),
        (Mask::Words(vec![0, 1 << 8]), &[]),
        (Mask::Words(vec![0, 0, 1]), &[]),
    ];
    let mut engine = Engine::new(&model.config, PLAIN).expect("valid sizes");
    let mut ids = Vec::new();
    for (mask, possible) in cases {
        // A temperature at which every token is as likely as another.
        for temperature in [0.0, 1.0, f32::MAX] {
            let words = match &mask {
                Mask::Words(words) => Mask::Words(words.clone()),
                Mask::One(id) => Mask::One(*id),
            };
            let params = SamplingParams {
                temperature,
                max_tokens: 20,
                ..SamplingParams::default()
            };
            let request = Request {
                sequence: 7,
                prompt: vec![3],
                params,
            };
            let submission = Submission {
                constraint: Some(Box::new(words)),
                ..request.into()
            };
            ids.push((
                engine.submit(submission).expect("valid"),
                possible,
                temperature,
            ));
        }
    }
    let mut streams = Streams::default();
    while !engine.is_idle() {
        streams.take(engine.advance(&model, &backend));
    }
    for (id, possible, temperature) in ids {
        let stream = &streams.0[&id];
        let is_allowed = |id: &u32| possible.contains(id);
        assert!(
            stream.token_ids().iter().all(is_allowed),
            "{possible:?} {temperature}"
        );
        assert_eq!(
            stream.tokens.len(),
            if possible.is_empty() { 0 } else { 20 }
        );
        let evenly = -(possible.len() as f32).ln();
        for token in &stream.tokens {
            assert!(temperature < f32::MAX || (token.logprob - evenly).abs() < 1e-5);
            assert!(possible.len() > 1 || token.logprob == 0.0);
        }
    }
}

#[test]
fn what_is_out_of_range_is_refused_in_words() {
    let model = model(VOCAB, Precision::F32);
    let backend = Cpu::new(1, Isa::best());
    let mut engine = Engine::new(&model.config, PLAIN).expect("valid sizes");
    let good = || Request {
        sequence: 77,
        prompt: vec![1, 2],
        params: SamplingParams::default(),
    };
    type Change = fn(&mut SamplingParams);
    let cases: [(Change, &[&str]); 13] = [
        (
            |p| p.presence_penalty = 2.5,
            &["`presence_penalty` is 2.5", "from -2 to 2"],
        ),
        (
            |p| p.presence_penalty = f32::NAN,
            &["presence_penalty", "NaN"],
        ),
        (
            |p| p.frequency_penalty = -2.1,
            &["frequency_penalty", "-2.1"],
        ),
        (
            |p| p.frequency_penalty = f32::INFINITY,
            &["frequency_penalty", "inf"],
        ),
        (
            |p| p.repetition_penalty = 0.0,
            &["repetition_penalty", "0.01 to 100"],
        ),
        (|p| p.repetition_penalty = f32::NAN, &["repetition_penalty"]),
        (|p| p.repetition_penalty = 1e9, &["repetition_penalty"]),
        (
            |p| p.logit_bias = vec![(1, 101.0)],
            &["logit_bias", "101 for token id 1"],
        ),
        (
            |p| p.logit_bias = vec![(1, f32::NAN)],
            &["logit_bias", "NaN"],
        ),
        (
            |p| p.logit_bias = vec![(0, 0.0), (64, 1.0)],
            &["logit_bias", "64 at position 1"],
        ),
        (
            |p| p.logit_bias = vec![(3, 1.0), (2, 0.0), (3, 1.0)],
            &["token id 3 twice"],
        ),
        (|p| p.max_tokens = 0, &["max_tokens", "at least 1"]),
        (|p| p.max_tokens = usize::MAX, &["exceed 128"]),
    ];
    for (change, words) in cases {
        let mut request = good();
        change(&mut request.params);
        let error = engine.submit(request.into()).expect_err("out of range");
        let message = error.to_string();
        assert!(message.contains("sequence 77"), "{message}");
        for word in words {
            assert!(message.contains(word), "no {word:?} in: {message}");
        }
    }
    assert!(engine.is_idle());
    assert_eq!(engine.advance(&model, &backend), []);
    // What is just within is taken, alternatives beyond the vocabulary are all of it.
    let mut request = good();
    request.params = SamplingParams {
        presence_penalty: -2.0,
        frequency_penalty: 2.0,
        repetition_penalty: 100.0,
        logit_bias: vec![(63, -100.0), (0, 100.0)],
        top_logprobs: usize::MAX,
        max_tokens: 1,
        ..SamplingParams::default()
    };
    let id = engine.submit(request.into()).expect("within");
    let outputs = engine.advance(&model, &backend);
    assert_eq!((outputs.len(), outputs[0].id), (1, id));
    assert_eq!(outputs[0].tokens[0].top.len(), VOCAB);
    let speculation = Speculation {
        prompt_lookup: 65,
        ..Speculation::default()
    };
    let error = Engine::new(
        &model.config,
        EngineConfig {
            speculation,
            ..PLAIN
        },
    );
    let error = error.err().expect("too long a draft");
    assert!(
        matches!(
            error,
            Error::Config {
                field: "prompt_lookup",
                ..
            }
        ),
        "{error}"
    );
}
