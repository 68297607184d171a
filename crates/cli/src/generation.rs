//! Tokens out of a model, and what they say.

use engine::{Completion, Engine, EngineConfig, FinishReason, Request, Speculation};
use kernels::Cpu;
use model::Model;
use serde::Serialize;
use tasks::{Problem, Task};
use text::{Tokenizer, split_reasoning};

use crate::failure::{Failure, RESOURCES};
use crate::memory;
use crate::progress::{Progress, Ui};

/// Tokens a block of the cache holds.
pub const BLOCK_SIZE: usize = 16;
/// Sequences decoded at one time; more than this fills the arithmetic already.
const MAX_SEQUENCES: usize = 128;

/// Generates for all requests, in their order.
///
/// # Errors
/// A request that does not fit the model or the cache.
pub fn generate(
    model: &Model,
    backend: &Cpu,
    requests: Vec<Request>,
    progress: &mut Progress,
) -> Result<Vec<Completion>, Failure> {
    let longest = requests
        .iter()
        .map(|request| request.prompt.len() + request.params.max_tokens)
        .max()
        .unwrap_or(1);
    let sequences = requests.len().clamp(1, MAX_SEQUENCES);
    let sizes = EngineConfig {
        max_num_seqs: sequences,
        max_num_batched_tokens: longest.clamp(1024, 4096),
        block_size: BLOCK_SIZE,
        num_blocks: blocks(model, sequences, longest)?,
        prefix_caching: false,
        speculation: Speculation::default(),
    };
    let mut engine = Engine::new(&model.config, sizes)?;
    let mut show = |state: engine::Progress| {
        progress.update_tokens(state.finished as u64, state.generated_tokens as u64);
    };
    Ok(engine.generate(model, backend, requests, &mut show)?)
}

/// Blocks of the cache: for all sequences at their longest, or as many as memory holds, for then
/// some wait for others.
///
/// # Errors
/// Memory does not hold one sequence.
pub fn blocks(model: &Model, sequences: usize, longest: usize) -> Result<usize, Failure> {
    let one = longest.div_ceil(BLOCK_SIZE) + 1;
    let all = sequences.saturating_mul(one);
    let block_bytes = 4 * model.config.cache_elements_per_token() as u64 * BLOCK_SIZE as u64;
    let Some(available) = memory::available() else {
        return Ok(all);
    };
    let room = usize::try_from(available / block_bytes.max(1)).unwrap_or(usize::MAX);
    if room >= one {
        return Ok(all.min(room));
    }
    let needed = block_bytes.saturating_mul(one as u64);
    let cause = format!(
        "a cache of {longest} tokens needs {} of memory, and {} are available",
        memory::shown(needed),
        memory::shown(available)
    );
    let advice = "ask for fewer tokens with --max-tokens";
    Err(Failure::new(RESOURCES, cause, advice))
}

/// A completion in words.
#[derive(Clone, Debug, Serialize)]
pub struct Told {
    pub token_ids: Vec<u32>,
    /// Without special tokens; empty where the folder has no tokenizer.
    pub text: String,
    pub thinking: Option<String>,
    pub answer: String,
    /// Of each token as it was sampled, before top-p, top-k and min-p cut anything off.
    pub logprobs: Vec<f32>,
    pub finish_reason: &'static str,
}

impl Told {
    /// `primed`: the prompt ended inside `<think>`.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn new(
        completion: Completion,
        tokenizer: Option<&Tokenizer>,
        primed: bool,
    ) -> Result<Told, Failure> {
        let text = match tokenizer {
            Some(tokenizer) => tokenizer.decode(&completion.token_ids, true)?,
            None => String::new(),
        };
        let (thinking, answer) = split_reasoning(&text, primed && tokenizer.is_some());
        let (thinking, answer) = (thinking.map(str::to_string), answer.to_string());
        Ok(Told {
            token_ids: completion.token_ids,
            text,
            thinking,
            answer,
            logprobs: completion.logprobs,
            finish_reason: match completion.finish_reason {
                FinishReason::Stop => "stop",
                FinishReason::Length => "length",
            },
        })
    }
}

/// Whether the tokenizer has our tasks' words at their ids.
pub fn speaks_our_words(tokenizer: &Tokenizer) -> bool {
    let words = tasks::vocabulary();
    let matches = |(id, word): (u32, &String)| tokenizer.id_to_token(id).as_ref() == Some(word);
    tokenizer.vocab_size() == words.len() && (0..).zip(&words).all(matches)
}

/// Words that became `<unk>` are not what the user meant.
pub fn warn_of_unknown_words(tokenizer: Option<&Tokenizer>, ui: Ui, prompt: &[u32]) {
    let unknown = tokenizer.and_then(|tokenizer| tokenizer.token_to_id(tasks::UNK));
    let count = prompt.iter().filter(|&&id| Some(id) == unknown).count();
    if count > 0 {
        ui.warn(format_args!(
            "{count} of the prompt's words are not in the vocabulary"
        ));
    }
}

/// The task and the problem that a prompt in our words puts, `<think>` at its end or not.
pub fn recognise(prompt: &str) -> Option<(Box<dyn Task>, Problem)> {
    let question = prompt.trim().trim_end_matches(tasks::THINK_OPEN).trim();
    let words: Vec<&str> = question.split_whitespace().collect();
    let numbers: Option<Vec<u32>> = words.iter().map(|word| word.parse().ok()).collect();
    let numbers = numbers?;
    let (&target, given) = numbers.split_last()?;
    let task = tasks::task_by_name(&format!("countdown{}", given.len())).ok()?;
    let numbers = given.to_vec();
    Some((task, Problem { numbers, target }))
}

#[cfg(test)]
mod tests {
    use super::recognise;

    #[test]
    fn a_countdown_prompt_is_recognised_and_nothing_else() {
        let (task, problem) = recognise("69 64 4 20 <think>").expect("three numbers and a target");
        assert_eq!(task.name(), "countdown3");
        assert_eq!((problem.numbers, problem.target), (vec![69, 64, 4], 20));
        let (task, _) = recognise(" 75 69 11 4 20 ").expect("four numbers and a target");
        assert_eq!(task.name(), "countdown4");
        for other in [
            "",
            "<think>",
            "4 7 * 3 6 <think>",
            "1 2 3 <think>",
            "1 2 3 4 -5",
            "hello",
        ] {
            assert!(recognise(other).is_none(), "{other:?}");
        }
    }
}
