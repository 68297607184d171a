//! The next token of a sequence, from its logits and its own stream of chance.
//!
//! The chance law: a token is a function of the row of logits, the request's parameters, the tokens
//! before it where penalties or a constraint look at them, and `Chance::new(seed,
//! Purpose::Sampling).uniform(sequence, position)`, the position counted from the first generated
//! token. What else is in the batch, and when it is sampled, does not enter.

use crate::adjust::finite;
use crate::filter::{RowSampler, likeliest};
use crate::output::ScoredToken;
use crate::params::{LogprobsOf, SamplingParams};
use crate::sequence::{Adjusted, Sequence};
use kernels::{Backend, Chance, LogNormalizer, Mat, MatMut, Purpose};
use std::ops::Range;

/// A row of logits, and the sequence whose next token it is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Due {
    /// In the logits.
    pub(crate) row: usize,
    /// Among the sequences.
    pub(crate) index: usize,
}

/// Draws tokens, and records their log-probabilities. It holds nothing but buffers.
#[derive(Default)]
pub(crate) struct Sampler {
    temperatures: Vec<f32>,
    /// Of each row of logits, at the temperature of its log-probabilities.
    normalizers: Vec<LogNormalizer>,
    /// Of each row of logits at temperature 1, where alternatives are asked for.
    raw: Vec<LogNormalizer>,
    /// Rows that bias, penalties or constraints changed.
    changed: Vec<f32>,
    changed_temperatures: Vec<f32>,
    changed_normalizers: Vec<LogNormalizer>,
    probabilities: Vec<f32>,
    plans: Vec<Plan>,
    row: RowSampler,
    candidates: Vec<u64>,
    /// Of the last call of [`choose`](Sampler::choose), in order; `None` where no token may follow.
    pub(crate) chosen: Vec<Option<ScoredToken>>,
}

/// How one token is chosen.
struct Plan {
    due: Due,
    /// Row of `changed`; `None` takes the model's own.
    changed: Option<usize>,
    token_id: u32,
    is_over: bool,
}

impl Sampler {
    /// Prepares for rows `[rows, vocab_size]` of logits; `params` of the sequence of each.
    pub(crate) fn begin<'a>(
        &mut self,
        backend: &dyn Backend,
        logits: Mat,
        params: impl Iterator<Item = &'a SamplingParams>,
    ) {
        self.temperatures.clear();
        let mut wants_raw = false;
        for params in params {
            let temperature = params.scoring_temperature();
            wants_raw |= params.top_logprobs > 0 && temperature != 1.0;
            self.temperatures.push(temperature);
        }
        self.normalizers
            .resize(logits.rows, LogNormalizer::default());
        backend.log_normalizers(logits, &self.temperatures, &mut self.normalizers);
        self.raw.clone_from(&self.normalizers);
        if wants_raw {
            self.temperatures.fill(1.0);
            backend.log_normalizers(logits, &self.temperatures, &mut self.raw);
        }
    }

    /// Scores row i for `token_ids[i]`, with `tops[i]` alternatives, as the model itself has it.
    pub(crate) fn score(
        &mut self,
        backend: &dyn Backend,
        logits: Mat,
        tokens: impl Iterator<Item = (u32, usize)>,
        mut take: impl FnMut(usize, ScoredToken),
    ) {
        self.temperatures.clear();
        self.temperatures.resize(logits.rows, 1.0);
        self.raw.resize(logits.rows, LogNormalizer::default());
        backend.log_normalizers(logits, &self.temperatures, &mut self.raw);
        for (row, (token_id, count)) in tokens.enumerate() {
            let logprob = self.raw[row].logprob(logits.row(row)[token_id as usize]);
            let top = self.top(logits, row, count);
            take(
                row,
                ScoredToken {
                    token_id,
                    logprob,
                    top,
                },
            );
        }
    }

    fn top(&mut self, logits: Mat, row: usize, count: usize) -> Vec<(u32, f32)> {
        let (logits, normalizer) = (logits.row(row), self.raw[row]);
        let ids = likeliest(logits, count, &mut self.candidates);
        ids.map(|id| (id, normalizer.logprob(logits[id as usize])))
            .collect()
    }

    /// Chooses one token for each of `due` from the logits given to [`begin`](Sampler::begin).
    pub(crate) fn choose(
        &mut self,
        backend: &dyn Backend,
        logits: Mat,
        due: &[Due],
        sequences: &mut [Sequence],
    ) {
        self.adjust(backend, logits, due, sequences);
        self.pick(backend, logits, sequences);
        self.chosen.clear();
        for i in 0..self.plans.len() {
            let plan = &self.plans[i];
            if plan.is_over {
                self.chosen.push(None);
                continue;
            }
            let Due { row, index } = plan.due;
            let (token_id, params) = (plan.token_id, &sequences[index].params);
            let model_s = logits.row(row)[token_id as usize];
            let logprob = match (params.logprobs, plan.changed) {
                (LogprobsOf::Sampled, Some(changed)) => {
                    let logit = self.changed[changed * logits.cols + token_id as usize];
                    self.changed_normalizers[changed].logprob(logit)
                }
                _ => self.normalizers[row].logprob(model_s),
            };
            let top = self.top(logits, row, params.top_logprobs);
            self.chosen.push(Some(ScoredToken {
                token_id,
                logprob,
                top,
            }));
        }
    }

    /// Plans every choice: which row it is from, and whether there is one.
    fn adjust(
        &mut self,
        backend: &dyn Backend,
        logits: Mat,
        due: &[Due],
        sequences: &mut [Sequence],
    ) {
        self.plans.clear();
        self.changed.clear();
        self.changed_temperatures.clear();
        for &due in due {
            let sequence = &mut sequences[due.index];
            let mut adjusted = Adjusted::Untouched;
            let start = self.changed.len();
            if sequence.adjusts() {
                self.changed.extend_from_slice(logits.row(due.row));
                adjusted = sequence.adjust(&mut self.changed[start..]);
            }
            let mut changed = None;
            if adjusted == Adjusted::Changed {
                changed = Some(self.changed_temperatures.len());
                let temperature = sequence.params.scoring_temperature();
                self.changed_temperatures.push(temperature);
            } else {
                self.changed.truncate(start);
            }
            self.plans.push(Plan {
                due,
                changed,
                token_id: 0,
                is_over: adjusted == Adjusted::Over,
            });
        }
        let rows = self.changed_temperatures.len();
        self.changed_normalizers
            .resize(rows, LogNormalizer::default());
        if rows > 0 {
            let changed = Mat::new(&self.changed, logits.cols);
            let (temperatures, out) = (&self.changed_temperatures, &mut self.changed_normalizers);
            backend.log_normalizers(changed, temperatures, out);
        }
    }

    /// Chooses the token of every plan.
    fn pick(&mut self, backend: &dyn Backend, logits: Mat, sequences: &[Sequence]) {
        let params = |plan: &Plan| &sequences[plan.due.index].params;
        let drawn = |plan: &Plan| !plan.is_over && params(plan).temperature > 0.0;
        self.probabilities.clear();
        for plan in &mut self.plans {
            let row = match plan.changed {
                None => logits.row(plan.due.row),
                Some(i) => &self.changed[i * logits.cols..(i + 1) * logits.cols],
            };
            if drawn(plan) {
                match plan.changed {
                    None => self.probabilities.extend(row.iter().map(|&x| finite(x))),
                    Some(_) => self.probabilities.extend_from_slice(row),
                }
            } else {
                plan.token_id = argmax(row);
            }
        }
        let temperatures = self.plans.iter().filter(|plan| drawn(plan));
        let temperatures: Vec<f32> = temperatures.map(|plan| params(plan).temperature).collect();
        softmax(backend, &mut self.probabilities, logits.cols, &temperatures);
        let rows = self.probabilities.chunks_mut(logits.cols);
        let plans = self.plans.iter_mut().filter(|plan| drawn(plan));
        for (plan, row) in plans.zip(rows) {
            let sequence = &sequences[plan.due.index];
            let chance = Chance::new(sequence.params.seed, Purpose::Sampling);
            let uniform = chance.uniform(sequence.sequence, sequence.num_sampled() as u32);
            plan.token_id = self.row.choose(row, &sequence.params, uniform);
        }
    }
}

/// Rows of logits become probabilities, each at its temperature. Neighbours of equal temperature
/// share a call.
fn softmax(backend: &dyn Backend, rows: &mut [f32], vocab_size: usize, temperatures: &[f32]) {
    let mut start = 0;
    while let Some(&temperature) = temperatures.get(start) {
        let rest = temperatures[start..].iter();
        let same = rest.take_while(|&&other| other == temperature).count();
        let run: Range<usize> = start * vocab_size..(start + same) * vocab_size;
        backend.softmax(MatMut::new(&mut rows[run], vocab_size), temperature);
        start += same;
    }
}

/// The id of the greatest logit, the lowest id on ties. Not-a-number counts as minus infinity.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let mut best = (f32::NEG_INFINITY, 0);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.0 {
            best = (logit, id as u32);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::tests::naive_kept;
    use crate::request::{Request, SequenceId};
    use kernels::{Cpu, Isa};

    fn sequence(sequence: u64, params: SamplingParams) -> Sequence {
        let prompt = vec![0];
        let request = Request {
            sequence,
            prompt,
            params,
        };
        Sequence::new(request.into(), SequenceId(0))
    }

    fn scored(token_id: u32) -> ScoredToken {
        ScoredToken {
            token_id,
            logprob: 0.0,
            top: Vec::new(),
        }
    }

    /// One token of each sequence, row by row.
    fn sample(logits: Mat, sequences: &mut [Sequence]) -> Vec<ScoredToken> {
        let (cpu, mut sampler) = (Cpu::new(2, Isa::best()), Sampler::default());
        let due: Vec<Due> = (0..sequences.len())
            .map(|i| Due { row: i, index: i })
            .collect();
        sampler.begin(
            &cpu,
            logits,
            sequences.iter().map(|sequence| &sequence.params),
        );
        sampler.choose(&cpu, logits, &due, sequences);
        sampler.chosen.into_iter().flatten().collect()
    }

    fn random_logits(seed: u64, n: usize) -> Vec<f32> {
        let chance = Chance::new(seed, Purpose::Problem);
        (0..n)
            .map(|i| 3.0 * chance.normal(1, i as u32) as f32)
            .collect()
    }

    /// The chance law to the letter: seed, sequence number, and position among generated tokens.
    #[test]
    fn the_draw_is_that_of_seed_sequence_and_position() {
        let vocab_size = 50;
        let row = random_logits(8, vocab_size);
        for position in 0..60 {
            let request = Request {
                sequence: 1 << 40,
                prompt: vec![0; 7],
                params: SamplingParams {
                    seed: 9,
                    max_tokens: 100,
                    ..SamplingParams::default()
                },
            };
            let mut sequence = Sequence::new(request.into(), SequenceId(3));
            (0..position).for_each(|_| sequence.push(scored(1)));
            let logits = Mat::new(&row, vocab_size);
            let chosen = sample(logits, &mut [sequence]);
            let uniform = Chance::new(9, Purpose::Sampling).uniform(1 << 40, position);
            let weights: Vec<f64> = row.iter().map(|&x| f64::from(x).exp()).collect();
            let target = uniform * weights.iter().sum::<f64>();
            let mut sum = 0.0;
            let past = |weight: &f64| {
                sum += weight;
                sum > target
            };
            let expected = weights.iter().position(past).unwrap() as u32;
            assert_eq!(chosen[0].token_id, expected, "position {position}");
        }
    }

    /// Pearson's statistic of the sampled tokens against the probabilities in f64, which for 19
    /// degrees of freedom exceeds 60 once in 250,000 times.
    #[test]
    fn frequencies_are_the_probabilities() {
        let (vocab_size, samples) = (20, 40_000);
        let row = random_logits(5, vocab_size);
        for (temperature, top_k) in [(1.0, 0), (0.6, 0), (1.7, 7)] {
            let params = SamplingParams {
                temperature,
                top_k,
                seed: 11,
                ..SamplingParams::default()
            };
            let weights: Vec<f64> = row
                .iter()
                .map(|&x| (f64::from(x) / f64::from(temperature)).exp())
                .collect();
            let as_f32: Vec<f32> = weights.iter().map(|&w| w as f32).collect();
            let kept = naive_kept(&as_f32, &params);
            let total: f64 = kept.iter().map(|&id| weights[id]).sum();
            let mut sequences: Vec<Sequence> =
                (0..samples).map(|i| sequence(i, params.clone())).collect();
            let logits = row.repeat(samples as usize);
            let mut counts = vec![0.0; vocab_size];
            for token in sample(Mat::new(&logits, vocab_size), &mut sequences) {
                counts[token.token_id as usize] += 1.0;
            }
            let mut statistic = 0.0;
            for id in 0..vocab_size {
                if kept.contains(&id) {
                    let expected = samples as f64 * weights[id] / total;
                    statistic += (counts[id] - expected).powi(2) / expected;
                } else {
                    assert_eq!(counts[id], 0.0, "id {id} was dropped");
                }
            }
            assert!(
                statistic < 60.0,
                "temperature {temperature}, top_k {top_k}: {statistic}"
            );
        }
    }

    /// Rows sampled together, in any order, give what each gives alone; and log-probabilities are
    /// those of the whole distribution at the temperature, in f64.
    #[test]
    fn a_row_depends_on_nothing_beside_it() {
        let (rows, vocab_size) = (40, 130);
        let logits = random_logits(6, rows * vocab_size);
        let mut draw = Chance::new(7, Purpose::Problem).draws(5);
        let mut sequences: Vec<Sequence> = (0..rows as u64)
            .map(|i| {
                let params = SamplingParams {
                    temperature: [0.0, 0.7, 0.7, 1.0][draw(4) as usize],
                    top_p: [1.0, 0.8][draw(2) as usize],
                    min_p: [0.0, 0.1][draw(2) as usize],
                    seed: draw(3),
                    ..SamplingParams::default()
                };
                sequence(i, params)
            })
            .collect();
        let together = sample(Mat::new(&logits, vocab_size), &mut sequences);
        for i in (0..rows).rev() {
            let row = &logits[i * vocab_size..(i + 1) * vocab_size];
            let alone = sample(Mat::new(row, vocab_size), &mut sequences[i..=i]);
            assert_eq!(alone[0], together[i], "row {i}");
            let temperature = match sequences[i].params.temperature {
                0.0 => 1.0,
                temperature => f64::from(temperature),
            };
            let scaled = |x: f32| f64::from(x) / temperature;
            let total: f64 = row.iter().map(|&x| scaled(x).exp()).sum();
            let logprob = scaled(row[alone[0].token_id as usize]) - total.ln();
            let difference = (logprob - f64::from(alone[0].logprob)).abs();
            assert!(difference < 1e-5, "row {i}: {logprob} {}", alone[0].logprob);
        }
    }

    #[test]
    fn greedy_is_the_lowest_of_the_greatest() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]), 1);
        assert_eq!(argmax(&[f32::NAN, -2.0, f32::NAN, -1.0]), 3);
        assert_eq!(argmax(&[f32::NAN; 3]), 0);
        assert_eq!(argmax(&[f32::NEG_INFINITY; 3]), 0);
        assert_eq!(argmax(&[0.0, f32::INFINITY, f32::INFINITY]), 1);
    }

    #[test]
    fn logits_that_are_not_finite_are_survived() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let cases = [
            (vec![nan, 1.0, nan, -inf], vec![1]),
            (vec![0.0, inf, 5.0, nan], vec![1]),
            (vec![-inf, nan, 2.0, 2.0], vec![2, 3]),
            (vec![nan; 4], vec![0, 1, 2, 3]),
            (vec![-inf; 4], vec![0, 1, 2, 3]),
            (vec![inf; 4], vec![0, 1, 2, 3]),
        ];
        for (row, possible) in cases {
            for (temperature, top_p) in [(0.0, 1.0), (1e-5, 1.0), (1.0, 1.0), (f32::MAX, 0.9)] {
                let params = SamplingParams {
                    temperature,
                    top_p,
                    ..SamplingParams::default()
                };
                let chosen = sample(Mat::new(&row, 4), &mut [sequence(3, params)]);
                // A temperature without end makes even the impossible possible.
                if temperature < f32::MAX {
                    assert!(
                        possible.contains(&chosen[0].token_id),
                        "{row:?} at {temperature}: {:?}",
                        chosen[0]
                    );
                }
            }
        }
    }
}
