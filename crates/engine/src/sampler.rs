//! The next token of a sequence, from its logits and its own stream of chance.
//!
//! The chance law: a token is a function of the row of logits, the request's parameters, and
//! `Chance::new(seed, Purpose::Sampling).uniform(sequence, position)`, the position counted from
//! the first generated token. What else is in the batch, and when it is sampled, does not enter.

use crate::sequence::{SamplingParams, Sequence};
use kernels::{Backend, Chance, Mat, MatMut, Purpose};
use std::cmp::Reverse;

/// Logits beyond this are overflow: clamped, and not-a-number to the lower end, so that every row
/// has a distribution. Over the smallest temperature it still is a finite f32.
const LARGEST_LOGIT: f32 = 1e30;

/// Ids whose probabilities are summed before their running sum is taken.
const BLOCK: usize = 64;

/// How many candidates are sorted first; each further round doubles them.
const FIRST_SORTED: usize = 64;

/// Draws tokens, and records their log-probabilities. It holds nothing but buffers.
#[derive(Default)]
pub(crate) struct Sampler {
    probabilities: Vec<f32>,
    entropies: Vec<f32>,
    row: RowSampler,
    /// Of the sequences of the last call, in order.
    pub(crate) token_ids: Vec<u32>,
    /// As [`Completion::logprobs`](crate::Completion::logprobs).
    pub(crate) logprobs: Vec<f32>,
}

impl Sampler {
    /// Samples one token for each of `sequences[due[i]]` from row i of `logits`
    /// `[due, vocab_size]`.
    pub(crate) fn sample(
        &mut self,
        backend: &dyn Backend,
        logits: Mat,
        sequences: &[Sequence],
        due: &[usize],
    ) {
        assert_eq!(logits.rows, due.len(), "rows of logits");
        self.token_ids.clear();
        self.logprobs.clear();
        self.logprobs.resize(due.len(), 0.0);
        self.entropies.resize(due.len(), 0.0);
        let temperature = |i: usize| sequences[due[i]].params.temperature;
        let mut start = 0;
        while start < due.len() {
            // Neighbours of equal temperature share one call of each kernel.
            let same = (start..due.len()).take_while(|&i| temperature(i) == temperature(start));
            let run = start..start + same.count();
            let rows = logits.rows(run.clone());
            let scored_at = match temperature(start) {
                0.0 => {
                    let greedy = run.clone().map(|i| argmax(logits.row(i)));
                    self.token_ids.extend(greedy);
                    1.0
                }
                temperature => {
                    self.draw(backend, rows, temperature, sequences, &due[run.clone()]);
                    temperature
                }
            };
            backend.logprobs(
                rows,
                &self.token_ids[run.clone()],
                scored_at,
                &mut self.logprobs[run.clone()],
                &mut self.entropies[run.clone()],
            );
            start = run.end;
        }
    }

    /// Appends a token for each row, all at one temperature above 0.
    fn draw(
        &mut self,
        backend: &dyn Backend,
        logits: Mat,
        temperature: f32,
        sequences: &[Sequence],
        due: &[usize],
    ) {
        let vocab_size = logits.cols;
        self.probabilities.clear();
        for i in 0..logits.rows {
            let finite = |&x: &f32| {
                if x.is_nan() {
                    -LARGEST_LOGIT
                } else {
                    x.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
                }
            };
            self.probabilities.extend(logits.row(i).iter().map(finite));
        }
        backend.softmax(
            MatMut::new(&mut self.probabilities, vocab_size),
            temperature,
        );
        for (row, &index) in self.probabilities.chunks_mut(vocab_size).zip(due) {
            let sequence = &sequences[index];
            let chance = Chance::new(sequence.params.seed, Purpose::Sampling);
            let uniform = chance.uniform(sequence.sequence, sequence.num_sampled() as u32);
            self.token_ids
                .push(self.row.choose(row, &sequence.params, uniform));
        }
    }
}

/// The id of the greatest logit, the lowest id on ties. Not-a-number counts as minus infinity.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = (f32::NEG_INFINITY, 0);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.0 {
            best = (logit, id as u32);
        }
    }
    best.1
}

/// Chooses from one row of probabilities.
#[derive(Default)]
struct RowSampler {
    /// Candidates as [`rank`]s.
    candidates: Vec<u64>,
    /// Sum of the probabilities up to the end of each block of ids.
    running_sums: Vec<f64>,
}

impl RowSampler {
    /// The token at `uniform` in [0, 1) of the distribution that top-k, top-p and min-p leave. What
    /// they drop becomes 0 in `row`.
    fn choose(&mut self, row: &mut [f32], params: &SamplingParams, uniform: f64) -> u32 {
        let drops_some = params.top_k > 0 && params.top_k < row.len();
        if drops_some || params.top_p < 1.0 || params.min_p > 0.0 {
            let lowest = self.lowest_kept(row, params);
            for (id, p) in row.iter_mut().enumerate() {
                if rank(*p, id) < lowest {
                    *p = 0.0;
                }
            }
        }
        self.invert_cdf(row, uniform)
    }

    /// The rank of the last candidate kept. All three filters keep a prefix of the candidates in
    /// descending order, so together they keep the shortest.
    fn lowest_kept(&mut self, row: &[f32], params: &SamplingParams) -> u64 {
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(row.iter().enumerate().map(|(id, &p)| rank(p, id)));
        let limit = match params.top_k {
            0 => row.len(),
            top_k => top_k.min(row.len()),
        };
        let mut sorted = 0;
        let wanted = if params.top_p == 1.0 {
            f64::INFINITY
        } else if limit == row.len() {
            f64::from(params.top_p) * row.iter().map(|&p| f64::from(p)).sum::<f64>()
        } else {
            sort_up_to(candidates, &mut sorted, limit);
            f64::from(params.top_p)
                * candidates[..limit]
                    .iter()
                    .map(|&c| probability(c))
                    .sum::<f64>()
        };
        let mut least = 0.0;
        let (mut count, mut sum) = (0, 0.0);
        while count < limit && sum < wanted {
            sort_up_to(candidates, &mut sorted, count + 1);
            let p = probability(candidates[count]);
            if count == 0 {
                least = f64::from(params.min_p) * p;
            } else if p < least {
                break;
            }
            sum += p;
            count += 1;
        }
        candidates[count.max(1) - 1]
    }

    /// The first id up to which the probabilities sum to more than `uniform` times their total.
    ///
    /// Sums are f64 in the order of ids, whole blocks first; so long as some probability is above
    /// 0, one above 0 is chosen.
    fn invert_cdf(&mut self, row: &[f32], uniform: f64) -> u32 {
        self.running_sums.clear();
        let mut total = 0.0;
        for block in row.chunks(BLOCK) {
            total += block_sum(block);
            self.running_sums.push(total);
        }
        // Below the total even after rounding, as `uniform` is at most 1 - 2^-53.
        let target = uniform * total;
        let block = self.running_sums.partition_point(|&sum| sum <= target);
        let block = block.min(self.running_sums.len() - 1);
        let mut sum = if block == 0 {
            0.0
        } else {
            self.running_sums[block - 1]
        };
        let first = block * BLOCK;
        let mut chosen = first;
        for (id, &p) in (first..).zip(row[first..].iter().take(BLOCK)) {
            // The two ways to sum a block may round apart: then its last possible id stands.
            if p > 0.0 {
                chosen = id;
                sum += f64::from(p);
                if sum > target {
                    break;
                }
            }
        }
        chosen as u32
    }
}

/// Sum in eight chains, which vector units can keep apart.
fn block_sum(block: &[f32]) -> f64 {
    let mut lanes = [0.0; 8];
    let (eights, rest) = block.as_chunks::<8>();
    for eight in eights {
        for (lane, &p) in lanes.iter_mut().zip(eight) {
            *lane += f64::from(p);
        }
    }
    for (lane, &p) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(p);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

/// Orders candidates by probability, then by lower id: the bits of floats that are not negative
/// are ordered as the floats are.
fn rank(probability: f32, id: usize) -> u64 {
    u64::from(probability.to_bits()) << 32 | u64::from(!(id as u32))
}

fn probability(rank: u64) -> f64 {
    f64::from(f32::from_bits((rank >> 32) as u32))
}

/// Brings at least the first `wanted` candidates into descending order, of which the first `sorted`
/// are so already. Doubling keeps the work near-linear when few are wanted of a large vocabulary.
fn sort_up_to(candidates: &mut [u64], sorted: &mut usize, wanted: usize) {
    if wanted <= *sorted {
        return;
    }
    let end = wanted
        .max(2 * *sorted)
        .max(FIRST_SORTED)
        .min(candidates.len());
    let rest = &mut candidates[*sorted..];
    let count = end - *sorted;
    if count < rest.len() {
        rest.select_nth_unstable_by_key(count - 1, |&c| Reverse(c));
    }
    rest[..count].sort_unstable_by_key(|&c| Reverse(c));
    *sorted = end;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::Request;
    use kernels::{Cpu, Isa};

    /// The draw just below 1.
    const LARGEST_UNIFORM: f64 = 1.0 - f64::EPSILON / 2.0;

    fn sequence(sequence: u64, params: SamplingParams) -> Sequence {
        let prompt = vec![0];
        let request = Request {
            sequence,
            prompt,
            params,
        };
        Sequence::new(request, 0)
    }

    fn cpu() -> Cpu {
        Cpu::new(2, Isa::best())
    }

    fn random_logits(seed: u64, n: usize) -> Vec<f32> {
        let chance = Chance::new(seed, Purpose::Problem);
        (0..n)
            .map(|i| 3.0 * chance.normal(1, i as u32) as f32)
            .collect()
    }

    /// Probabilities that often tie, and often are 0.
    fn random_probabilities(seed: u64, n: usize) -> Vec<f32> {
        let mut draw = Chance::new(seed, Purpose::Problem).draws(2);
        let weights: Vec<u64> = (0..n).map(|_| draw(6) * draw(4)).collect();
        let total = weights.iter().sum::<u64>().max(1) as f32;
        let mut row: Vec<f32> = weights.iter().map(|&w| w as f32 / total).collect();
        row[draw(n as u64) as usize] += 0.01;
        row
    }

    /// Which ids the filters keep, by the words of their definition: a full sort, then one filter
    /// after the other on what the one before left.
    fn naive_kept(row: &[f32], params: &SamplingParams) -> Vec<usize> {
        let mut ids: Vec<usize> = (0..row.len()).collect();
        ids.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap().then(a.cmp(&b)));
        if params.top_k > 0 {
            ids.truncate(params.top_k);
        }
        if params.top_p < 1.0 {
            let mass: f64 = ids.iter().map(|&id| f64::from(row[id])).sum();
            let share = |n: usize| -> f64 {
                ids[..n].iter().map(|&id| f64::from(row[id])).sum::<f64>() / mass
            };
            let fewest = (1..=ids.len()).find(|&n| share(n) >= f64::from(params.top_p));
            ids.truncate(fewest.unwrap_or(ids.len()));
        }
        let most = f64::from(row[ids[0]]);
        ids.retain(|&id| f64::from(row[id]) >= f64::from(params.min_p) * most);
        ids.sort_unstable();
        ids
    }

    #[test]
    fn filters_keep_what_their_definition_keeps() {
        let sizes = [1, 5, 63, 64, 65, 200, 700];
        let mut row_sampler = RowSampler::default();
        for seed in 0..600 {
            let mut draw = Chance::new(seed, Purpose::Problem).draws(3);
            let n = sizes[draw(sizes.len() as u64) as usize];
            let row = random_probabilities(seed, n);
            let params = SamplingParams {
                top_k: draw(2) as usize * draw(n as u64 + 2) as usize,
                top_p: [1.0, 0.999, 0.9, 0.5, 0.1, 1e-6][draw(6) as usize],
                min_p: [0.0, 0.01, 0.3, 0.7, 1.0][draw(5) as usize],
                ..SamplingParams::default()
            };
            let mut left = row.clone();
            row_sampler.choose(&mut left, &params, 0.5);
            let kept = naive_kept(&row, &params);
            for id in 0..n {
                let wanted = if kept.contains(&id) { row[id] } else { 0.0 };
                assert_eq!(left[id], wanted, "seed {seed}, id {id}, {params:?}");
            }
        }
    }

    #[test]
    fn inverse_cdf_is_the_first_id_past_the_draw() {
        let mut row_sampler = RowSampler::default();
        for seed in 0..400 {
            let mut draw = Chance::new(seed, Purpose::Problem).draws(4);
            let row = random_probabilities(seed, 1 + draw(300) as usize);
            let uniform = draw(1 << 53) as f64 / (1u64 << 53) as f64;
            let chosen = row_sampler.invert_cdf(&row, uniform) as usize;
            let total: f64 = row.iter().map(|&p| f64::from(p)).sum();
            let before: f64 = row[..chosen].iter().map(|&p| f64::from(p)).sum();
            let target = uniform * total;
            let after = before + f64::from(row[chosen]);
            assert!(before <= target + 1e-12, "seed {seed}: {before} {target}");
            assert!(after > target - 1e-12, "seed {seed}: {after} {target}");
        }
    }

    #[test]
    fn a_draw_on_the_boundary_belongs_to_the_next_id() {
        let mut row_sampler = RowSampler::default();
        assert_eq!(row_sampler.invert_cdf(&[0.5, 0.0, 0.5], 0.5), 2);
        let even = [1.0 / 256.0; 256];
        for id in 0..256 {
            let uniform = f64::from(id) / 256.0;
            assert_eq!(row_sampler.invert_cdf(&even, uniform), id);
        }
        let mut late = [0.0; 200];
        late[150] = 1.0;
        assert_eq!(row_sampler.invert_cdf(&late, 0.0), 150);
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
            let mut sequence = Sequence::new(request, 3);
            (0..position).for_each(|_| sequence.push(1, 0.0));
            let mut sampler = Sampler::default();
            sampler.sample(&cpu(), Mat::new(&row, vocab_size), &[sequence], &[0]);
            let uniform = Chance::new(9, Purpose::Sampling).uniform(1 << 40, position);
            let weights: Vec<f64> = row.iter().map(|&x| f64::from(x).exp()).collect();
            let target = uniform * weights.iter().sum::<f64>();
            let mut sum = 0.0;
            let past = |weight: &f64| {
                sum += weight;
                sum > target
            };
            let expected = weights.iter().position(past).unwrap() as u32;
            assert_eq!(sampler.token_ids, [expected], "position {position}");
        }
    }

    #[test]
    fn extreme_draws_never_choose_the_impossible() {
        let mut row_sampler = RowSampler::default();
        for seed in 0..400 {
            let row = random_probabilities(seed, 1 + seed as usize);
            let first = row.iter().position(|&p| p > 0.0).unwrap() as u32;
            let last = row.iter().rposition(|&p| p > 0.0).unwrap() as u32;
            assert_eq!(row_sampler.invert_cdf(&row, 0.0), first, "seed {seed}");
            let chosen = row_sampler.invert_cdf(&row, LARGEST_UNIFORM);
            assert_eq!(chosen, last, "seed {seed}");
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
            let sequences: Vec<Sequence> =
                (0..samples).map(|i| sequence(i, params.clone())).collect();
            let due: Vec<usize> = (0..samples as usize).collect();
            let logits = row.repeat(samples as usize);
            let mut sampler = Sampler::default();
            sampler.sample(&cpu(), Mat::new(&logits, vocab_size), &sequences, &due);
            let mut counts = vec![0.0; vocab_size];
            for &id in &sampler.token_ids {
                counts[id as usize] += 1.0;
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
        let sequences: Vec<Sequence> = (0..rows as u64)
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
        let due: Vec<usize> = (0..rows).collect();
        let mut together = Sampler::default();
        together.sample(&cpu(), Mat::new(&logits, vocab_size), &sequences, &due);
        let mut alone = Sampler::default();
        for i in (0..rows).rev() {
            let row = &logits[i * vocab_size..(i + 1) * vocab_size];
            alone.sample(&cpu(), Mat::new(row, vocab_size), &sequences, &[i]);
            assert_eq!(alone.token_ids, [together.token_ids[i]], "row {i}");
            assert_eq!(
                alone.logprobs[0].to_bits(),
                together.logprobs[i].to_bits(),
                "row {i}"
            );
            let temperature = match sequences[i].params.temperature {
                0.0 => 1.0,
                temperature => f64::from(temperature),
            };
            let scaled = |x: f32| f64::from(x) / temperature;
            let total: f64 = row.iter().map(|&x| scaled(x).exp()).sum();
            let logprob = scaled(row[alone.token_ids[0] as usize]) - total.ln();
            let difference = (logprob - f64::from(alone.logprobs[0])).abs();
            assert!(
                difference < 1e-5,
                "row {i}: {logprob} {}",
                alone.logprobs[0]
            );
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
                let sequences = [sequence(3, params)];
                let mut sampler = Sampler::default();
                sampler.sample(&cpu(), Mat::new(&row, 4), &sequences, &[0]);
                // A temperature without end makes even the impossible possible.
                if temperature < f32::MAX {
                    assert!(
                        possible.contains(&sampler.token_ids[0]),
                        "{row:?} at {temperature}: {:?}",
                        sampler.token_ids
                    );
                }
            }
        }
    }
}
