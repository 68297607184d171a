//! What serving takes: tokens a second and dollars a million tokens, for prompts (prefill) and for
//! answers (decode), on chips of their own as in DeepSeek's inference system.
//!
//! Sources: github.com/deepseek-ai/open-infra-index 202502 (the overview of day 6), and arXiv
//! 2505.09343, section 2.3. Nothing is fitted to a service: the shares of peak that are reached are
//! those that training uses (`data/efficiencies.toml`).

mod decode;
mod economy;
mod explain;
mod here;
mod pool;
mod prefill;
mod published;

use serde::Serialize;

pub use decode::{all_to_all, distinct_experts, exchange_bound};
pub use economy::{Day, Rates, deepseek_day};
pub use explain::Origin;
pub use here::{Here, Machine, here};
pub use pool::{CACHE_BYTES, Holding};
pub use published::{Published, published};

use crate::chip::Chip;
use crate::efficiency::{Efficiencies, Efficiency};
use crate::error::Error;
use crate::interval::Interval;
use crate::job::Precision;
use crate::quantity::{Bytes, Dollars, DollarsPerChipSecond, Seconds, TokensPerSecond};
use crate::shape::Shape;
use crate::step::check_chip;
use pool::Pool;

/// Mean tokens that an answer's tokens look back on, in DeepSeek's report.
pub const CONTEXT: u64 = 4989;
/// Mean prompt of that report: with 608 tokens in for 168 out, the mean context of a prompt of P
/// and its answer of P * 168 / 608 is P * (1 + 84 / 608) = 4,989.
pub const PROMPT: u64 = 4383;
/// Prompt tokens of that report whose cache was at hand: 342 of 608.
pub const CACHE_HITS: f64 = 342.0 / 608.0;
/// What a node is, whatever joins its chips: the unit of published rates.
pub const NODE: f64 = 8.0;
/// The most chips that one copy of a model is spread over where a user names no number; DeepSeek
/// decodes on 144.
pub const MOST_CHIPS: u64 = 320;
/// Of the search for the smallest number of chips that can.
const BEYOND: u64 = 8192;
/// Tensor parallelism that is tried.
const MOST_TENSOR: u64 = 64;

/// A model, chips, and what users do.
#[derive(Clone, Copy, Debug)]
pub struct Service<'a> {
    pub shape: &'a Shape,
    pub chip: &'a Chip,
    /// The most that one copy of the model may take.
    pub chips: u64,
    /// Chips that share a copy of the experts for prompts (of the model, where it has none);
    /// `None`: searched.
    pub prefill_chips: Option<u64>,
    /// The same for answers.
    pub decode_chips: Option<u64>,
    /// Of weights and of what they multiply; the cache is in 16 bits.
    pub precision: Precision,
    /// Mean cached tokens of a sequence that is being answered.
    pub context: u64,
    /// Mean tokens of a prompt.
    pub prompt: u64,
    /// Share of prompt tokens whose cache is at hand.
    pub cache_hits: f64,
    /// How often the second token that a module of multi-token prediction guesses is right; `None`:
    /// nothing is guessed.
    pub acceptance: Option<f64>,
    /// Tokens a second that each user must get at least.
    pub per_user: Option<f64>,
    /// Sequences on each chip; `None`: as many as memory and `per_user` allow.
    pub sequences: Option<u64>,
    /// What a chip costs.
    pub hourly: Option<Interval<DollarsPerChipSecond>>,
}

/// Rates of prompts.
#[derive(Clone, Debug, Serialize)]
pub struct Prefill {
    /// That share one copy of the model.
    pub chips: u64,
    pub tensor_parallel: u64,
    /// Computed in one micro-batch on one chip.
    pub micro_batch_tokens: u64,
    /// Tokens whose cache was at hand included.
    pub tokens_per_second_per_chip: Interval<TokensPerSecond>,
    pub tokens_per_second_per_node: Interval<TokensPerSecond>,
    /// Of one micro-batch, had it the chip alone.
    pub compute_seconds: Seconds,
    pub exchange_seconds: Seconds,
    pub memory_bytes_per_chip: Holding,
    /// `None` where no price is known.
    pub usd_per_million_tokens: Option<Interval<Dollars>>,
}

/// Rates of answers.
#[derive(Clone, Debug, Serialize)]
pub struct Decode {
    pub chips: u64,
    pub tensor_parallel: u64,
    /// Two micro-batches that hide each other's exchanges.
    pub overlapped: bool,
    pub sequences_per_chip: f64,
    pub tokens_per_second_per_chip: Interval<TokensPerSecond>,
    pub tokens_per_second_per_node: Interval<TokensPerSecond>,
    pub seconds_per_token: Interval<Seconds>,
    pub tokens_per_second_per_user: Interval<TokensPerSecond>,
    /// Of one step.
    pub compute_seconds: Seconds,
    pub exchange_seconds: Seconds,
    pub memory_bytes_per_chip: Holding,
    pub usd_per_million_tokens: Option<Interval<Dollars>>,
}

/// Both, and what they rest on.
#[derive(Clone, Debug, Serialize)]
pub struct Served {
    pub precision: Precision,
    pub prefill: Prefill,
    pub decode: Decode,
    pub cache_bytes_per_token: Bytes,
    pub origins: Vec<Origin>,
}

/// Published by predicted rate over the services of [`published`]: the bounds hold all of them,
/// DeepSeek's own, which are means over the load of a day, at both ends (a test compares).
pub const RATE_SPREAD: Interval<f64> = Interval {
    low: 0.58,
    mid: 1.0,
    high: 1.38,
};

/// Share of the bandwidth of memory that reading weights and caches in order reaches, and what a
/// kernel takes besides its work where graphs replay it: aiconfigurator's constants. Training's
/// are fitted to elementwise work and to kernels of all sizes, which a service has little of.
pub const READ_SHARE: f64 = 0.8;
pub const KERNEL_SECONDS: f64 = 3e-6;

/// Those of training but for the two above.
fn efficiencies() -> Efficiencies {
    Efficiencies::shipped()
        .with(Efficiency::Memory, READ_SHARE)
        .with(Efficiency::Kernel, KERNEL_SECONDS)
}

impl<'a> Service<'a> {
    /// DeepSeek's users on any number of chips up to [`MOST_CHIPS`], FP8 where the chip has it, at
    /// the rent that the catalogue names.
    pub fn new(shape: &'a Shape, chip: &'a Chip) -> Service<'a> {
        Service {
            shape,
            chip,
            chips: MOST_CHIPS,
            prefill_chips: None,
            decode_chips: None,
            precision: match chip.fp8 {
                Some(_) => Precision::Fp8,
                None => Precision::Bf16,
            },
            context: CONTEXT,
            prompt: PROMPT,
            cache_hits: CACHE_HITS,
            acceptance: None,
            per_user: None,
            sequences: None,
            hourly: chip.hourly,
        }
    }

    /// Both phases.
    ///
    /// # Errors
    /// As [`Service::prefill`] and [`Service::decode`].
    pub fn serve(&self) -> Result<Served, Error> {
        let (prefill, decode) = (self.prefill()?, self.decode()?);
        Ok(Served {
            precision: self.precision,
            cache_bytes_per_token: self
                .shape
                .cache_bytes_per_token(crate::shape::CacheWidth(CACHE_BYTES)),
            origins: explain::origins(self, &prefill, &decode),
            prefill,
            decode,
        })
    }

    /// Prompts.
    ///
    /// # Errors
    /// [`Error::Asked`] for what cannot be, [`Error::Chip`] for a chip of which too little is
    /// known, [`Error::DoesNotFit`] with what is missing and the fewest chips that can.
    pub fn prefill(&self) -> Result<Prefill, Error> {
        self.check()?;
        let candidates = self.pools(self.prefill_chips, &efficiencies())?;
        let tried = candidates.iter().filter_map(|pool| {
            let tokens = pool.micro_batch()?;
            Some((pool, tokens, pool.prefill_rate(tokens)))
        });
        let best = tried.max_by(|a, b| a.2.0.total_cmp(&b.2.0));
        let Some((pool, tokens, whole)) = best else {
            return Err(self.too_small(&candidates, |pool| pool.holding_of_prompts(128).total()));
        };
        let rate = RATE_SPREAD.map(|factor| whole * factor);
        let pass = pool.prompts(tokens);
        Ok(Prefill {
            chips: pool.chips,
            tensor_parallel: pool.tp,
            micro_batch_tokens: tokens,
            tokens_per_second_per_chip: rate,
            tokens_per_second_per_node: rate.map(|rate| rate * NODE),
            compute_seconds: pass.compute,
            exchange_seconds: pass.work.experts,
            memory_bytes_per_chip: pool.holding_of_prompts(tokens),
            usd_per_million_tokens: self.cost(rate),
        })
    }

    /// Answers.
    ///
    /// # Errors
    /// As [`Service::prefill`]; and [`Error::Asked`] where no batch gives a user enough.
    pub fn decode(&self) -> Result<Decode, Error> {
        self.check()?;
        let candidates = self.pools(self.decode_chips, &efficiencies())?;
        let tried = candidates.iter().filter_map(|pool| {
            let sequences = pool.batch()?;
            Some((pool, sequences, pool.decode_rate(sequences)))
        });
        let best = tried.max_by(|a, b| a.2.0.total_cmp(&b.2.0));
        let Some((pool, sequences, whole)) = best else {
            return Err(self.no_batch(&candidates));
        };
        let rate = RATE_SPREAD.map(|factor| whole * factor);
        let step = pool.step(sequences);
        let token = RATE_SPREAD.map(|factor| step.seconds / step.tokens / factor);
        Ok(Decode {
            chips: pool.chips,
            tensor_parallel: pool.tp,
            overlapped: step.overlapped,
            sequences_per_chip: sequences as f64 / pool.tp as f64,
            tokens_per_second_per_chip: rate,
            tokens_per_second_per_node: rate.map(|rate| rate * NODE),
            seconds_per_token: token,
            tokens_per_second_per_user: token.map(|token| TokensPerSecond(1.0 / token.0)),
            compute_seconds: step.compute,
            exchange_seconds: step.work.experts,
            memory_bytes_per_chip: pool.holding(sequences),
            usd_per_million_tokens: self.cost(rate),
        })
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |what: &str, message: String| Err(Error::asked(what, message));
        for (what, value) in [
            ("chips", Some(self.chips)),
            ("chips of prefill", self.prefill_chips),
            ("chips of decode", self.decode_chips),
            ("context", Some(self.context)),
            ("prompt", Some(self.prompt)),
            ("sequences", self.sequences),
        ] {
            if value == Some(0) {
                return wrong(what, "0; at least 1 is needed".to_string());
            }
        }
        let longest = 1 << 30;
        if self.context.max(self.prompt) > longest {
            return wrong("context", format!("more than {longest} tokens"));
        }
        if !(0.0..1.0).contains(&self.cache_hits) {
            let hits = self.cache_hits;
            let message =
                format!("{hits}: a share from 0 to below 1, as a prompt's end is computed");
            return wrong("cache hits", message);
        }
        if let Some(acceptance) = self.acceptance {
            if !(0.0..=1.0).contains(&acceptance) {
                return wrong("acceptance", format!("{acceptance}: a share from 0 to 1"));
            }
            if self.shape.mtp_modules == 0 {
                let message = "the model has no module of multi-token prediction that could guess";
                return wrong("acceptance", message.to_string());
            }
        }
        match self.per_user {
            Some(rate) if !(rate.is_finite() && rate > 0.0) => {
                wrong("tokens per user", format!("{rate}: a number above 0"))
            }
            _ => check_chip(&Pool::new(self, 1, 1, &efficiencies()).job(1)),
        }
    }

    /// Ways to lay one copy out, over the chips that are asked for or over all numbers that may be.
    fn pools(&self, wanted: Option<u64>, with: &Efficiencies) -> Result<Vec<Pool<'_>>, Error> {
        let numbers = match wanted {
            Some(chips) if chips > self.chips => {
                let message = format!("{chips} where {} chips are given", self.chips);
                return Err(Error::asked("chips of a copy", message));
            }
            Some(chips) => vec![chips],
            None => self.numbers(self.chips),
        };
        let pools = numbers.into_iter().flat_map(|chips| self.layouts(chips));
        let pools: Vec<Pool> = pools
            .map(|(chips, tp)| Pool::new(self, chips, tp, with))
            .collect();
        if pools.is_empty() {
            let message = "tensor parallelism divides no head over so many; try a power of two";
            return Err(Error::asked("chips of a copy", message));
        }
        Ok(pools)
    }

    /// Numbers of chips that are tried, at most `most`: whole nodes where experts are spread.
    fn numbers(&self, most: u64) -> Vec<u64> {
        let mut numbers = vec![1, 2, 4];
        match self.shape.experts() {
            Some(experts) => {
                let last = experts.routed.max(8);
                numbers.extend((1..).map(|nodes| 8 * nodes).take_while(|&n| n <= last));
                numbers.extend((1..14).map(|power| last << power));
            }
            None => numbers.extend((3..14).map(|power| 1 << power)),
        }
        numbers.retain(|&chips| chips <= most);
        if most <= MOST_CHIPS && !numbers.contains(&most) {
            numbers.push(most);
        }
        numbers
    }

    /// Tensor parallelism that divides heads and chips; without experts there is no other way to
    /// spread a model.
    fn layouts(&self, chips: u64) -> Vec<(u64, u64)> {
        let blocks = &self.shape.blocks;
        let divides = |tp: u64| {
            let heads = |tp| {
                blocks
                    .iter()
                    .all(|b| b.layer.attention.num_heads() % tp == 0)
            };
            chips.is_multiple_of(tp) && heads(tp)
        };
        if self.shape.experts().is_none() {
            let whole = (chips <= MOST_TENSOR && divides(chips)).then_some((chips, chips));
            return whole.into_iter().collect();
        }
        let domain = self.chip.scale_up_chips.unwrap_or(1).max(1);
        let most = domain.min(MOST_TENSOR).min(chips);
        let powers = (0..7).map(|power| 1 << power);
        let powers = powers.filter(|&tp| tp <= most && divides(tp));
        powers.map(|tp| (chips, tp)).collect()
    }

    /// No batch: too little memory, or too many tokens a second asked.
    fn no_batch(&self, candidates: &[Pool]) -> Error {
        let fastest = |pool: &Pool| pool.step(1).tokens / pool.step(1).seconds.0;
        let fitting = candidates.iter().filter(|pool| pool.most_sequences() > 0);
        let rates = fitting.map(fastest);
        let best = rates.fold(0.0, f64::max);
        if best == 0.0 {
            return self.too_small(candidates, |pool| pool.holding(1).total());
        }
        if let Some(sequences) = self.sequences {
            let most = candidates.iter().map(|p| p.most_sequences() / p.tp).max();
            let most = most.unwrap_or(0);
            let message = format!("{sequences} on each chip where memory holds {most}");
            return Error::asked("sequences", message);
        }
        let wanted = self.per_user.unwrap_or_default();
        let message = format!("{wanted} where one sequence alone gets {best:.1}");
        Error::asked("tokens per user", message)
    }

    /// What is missing on the least loaded layout, and the fewest chips on which nothing is.
    fn too_small(&self, candidates: &[Pool], needs: impl Fn(&Pool) -> Bytes) -> Error {
        let lacking = |pool: &Pool| needs(pool) - pool.usable();
        let least = candidates
            .iter()
            .min_by(|a, b| lacking(a).0.total_cmp(&lacking(b).0));
        let Some(pool) = least else {
            return Error::DoesNotFit("no layout of the model fits the chips".to_string());
        };
        let shipped = efficiencies();
        let layouts = self
            .numbers(BEYOND)
            .into_iter()
            .flat_map(|n| self.layouts(n));
        let able = layouts
            .filter(|&(chips, tp)| lacking(&Pool::new(self, chips, tp, &shipped)) <= Bytes::ZERO)
            .map(|(chips, _)| chips)
            .min();
        let advice = match able {
            Some(chips) => format!("the smallest number that can, in whole nodes, is {chips}"),
            None => "no number of them can: what each must hold alone is too much".to_string(),
        };
        let name = &self.chip.name;
        Error::DoesNotFit(format!(
            "{:.1} GB on each of {} x {name}, which leaves {:.1} GB: {:.1} GB too much; {advice}",
            needs(pool).0 / 1e9,
            pool.chips,
            pool.usable().0 / 1e9,
            lacking(pool).0 / 1e9
        ))
    }

    fn cost(&self, rate: Interval<TokensPerSecond>) -> Option<Interval<Dollars>> {
        let hourly = self.hourly?;
        let million = rate.map(|rate| 1e6 / rate.0);
        let dollars = |price: DollarsPerChipSecond, seconds: f64| Dollars(price.0 * seconds);
        Some(Interval::new(
            dollars(hourly.low, million.low),
            dollars(hourly.mid, million.mid),
            dollars(hourly.high, million.high),
        ))
    }
}
