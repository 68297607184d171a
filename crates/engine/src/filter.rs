//! The token at a draw of one row of probabilities, once top-k, top-p and min-p have cut it.

use crate::params::SamplingParams;
use std::cmp::Reverse;

/// Ids whose probabilities are summed before their running sum is taken.
const BLOCK: usize = 64;

/// How many candidates are sorted first; each further round doubles them.
const FIRST_SORTED: usize = 64;

/// Chooses from one row of probabilities.
#[derive(Default)]
pub(crate) struct RowSampler {
    /// Candidates as [`rank`]s.
    candidates: Vec<u64>,
    /// Sum of the probabilities up to the end of each block of ids.
    running_sums: Vec<f64>,
}

impl RowSampler {
    /// The token at `uniform` in [0, 1) of the distribution that top-k, top-p and min-p leave. What
    /// they drop becomes 0 in `row`.
    pub(crate) fn choose(&mut self, row: &mut [f32], params: &SamplingParams, uniform: f64) -> u32 {
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

/// The ids of the `count` greatest logits, or of all where they are fewer, the greatest first and
/// lower ids first on ties. Not-a-number comes last.
pub(crate) fn likeliest<'a>(
    logits: &[f32],
    count: usize,
    candidates: &'a mut Vec<u64>,
) -> impl Iterator<Item = u32> + use<'a> {
    let count = count.min(logits.len());
    candidates.clear();
    if count > 0 {
        candidates.extend(logits.iter().enumerate().map(|(id, &x)| signed_rank(x, id)));
        sort_up_to(candidates, &mut 0, count);
    }
    candidates[..count].iter().map(|&rank| !(rank as u32))
}

/// As [`rank`], of any float: both zeros are one, and the bits of negative ones are turned over.
fn signed_rank(logit: f32, id: usize) -> u64 {
    let bits = match logit {
        x if x.is_nan() => 0,
        x if x < 0.0 => !x.to_bits(),
        x => (x + 0.0).to_bits() | 1 << 31,
    };
    u64::from(bits) << 32 | u64::from(!(id as u32))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use kernels::{Chance, Purpose};

    /// The draw just below 1.
    const LARGEST_UNIFORM: f64 = 1.0 - f64::EPSILON / 2.0;

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
    pub(crate) fn naive_kept(row: &[f32], params: &SamplingParams) -> Vec<usize> {
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

    #[test]
    fn the_likeliest_are_those_of_a_full_sort() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let few = [0.5, -0.0, nan, 0.0, -3.0, inf, -inf, 0.5, -1e-40, nan];
        let ids = |count| likeliest(&few, count, &mut Vec::new()).collect::<Vec<_>>();
        assert_eq!(ids(99), [5, 0, 7, 1, 3, 8, 4, 6, 2, 9]);
        assert_eq!(ids(3), [5, 0, 7]);
        assert!(ids(0).is_empty());
        for seed in 0..50 {
            let mut draw = Chance::new(seed, Purpose::Problem).draws(5);
            let logits: Vec<f32> = (0..700).map(|_| draw(300) as f32 - 150.0).collect();
            let mut sorted: Vec<u32> = (0..700).collect();
            let logit = |id: u32| logits[id as usize];
            sorted.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
            let count = draw(700) as usize;
            let got: Vec<u32> = likeliest(&logits, count, &mut Vec::new()).collect();
            assert_eq!(got, sorted[..count], "seed {seed}");
        }
    }
}
