//! A run configuration from TOML and back, and the checks no type can make.

use std::path::Path;

use crate::error::Error;
use crate::run_config::{RunConfig, SftConfig};

/// Of one piece, one sequence or one pass. This and the bounds below are far beyond what the
/// machine can do, and stop a slip of the finger before the allocator does.
const MOST_TOKENS: usize = 1 << 20;

/// Of one step or one evaluation.
const MOST_SEQUENCES: usize = 1 << 20;

/// Larger files are not run configurations.
const LARGEST_FILE: u64 = 1 << 20;

impl RunConfig {
    /// Reads a TOML file over the defaults.
    ///
    /// # Errors
    /// [`Error::Input`] if it cannot be read; [`Error::Config`] with file, line, key and the
    /// nearest valid key if it cannot be used.
    pub fn read(path: &Path) -> Result<RunConfig, Error> {
        let fail = |error: std::io::Error| Error::input(path, format!("cannot be read: {error}"));
        let found = std::fs::metadata(path).map_err(fail)?;
        if !found.is_file() || found.len() > LARGEST_FILE {
            return Err(Error::input(path, "not a TOML file of reasonable size"));
        }
        let text = std::fs::read_to_string(path).map_err(fail)?;
        RunConfig::from_toml(&text, &path.display().to_string())
    }

    /// Reads TOML text over the defaults; `source` names the text in errors.
    ///
    /// # Errors
    /// [`Error::Config`] with `source`, line, key and the nearest valid key.
    pub fn from_toml(text: &str, source: &str) -> Result<RunConfig, Error> {
        let config: RunConfig = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| line_of(text, span.start));
            let place = line.map_or(source.to_string(), |line| format!("{source}:{line}"));
            Error::Config(format!("{place}: {}", explained(error.message())))
        })?;
        config
            .validate()
            .map_err(|message| Error::Config(format!("{source}: {message}")))?;
        Ok(config)
    }

    /// All settings, defaults included, as TOML that reads back as the same.
    ///
    /// # Panics
    /// If a number is beyond what TOML holds, which [`RunConfig::check`] refuses.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("checked settings are plain TOML values")
    }

    /// Checks settings that were changed after reading, such as from a command line.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key, its value and what is allowed.
    pub fn check(&self) -> Result<(), Error> {
        self.validate().map_err(Error::Config)
    }

    fn validate(&self) -> Result<(), String> {
        if i64::try_from(self.seed).is_err() {
            return Err(format!("seed = {}: at most {}", self.seed, i64::MAX));
        }
        self.validate_task()?;
        self.validate_model()?;
        self.validate_sft()?;
        self.validate_grpo()?;
        for &temperature in &self.eval.temperatures {
            range("eval.temperatures", temperature, 0.0, 100.0)?;
        }
        let engine = &self.engine;
        let sizes = [
            ("eval.problems", self.eval.problems, 1, MOST_SEQUENCES),
            (
                "eval.max_completion_tokens",
                self.eval.max_completion_tokens,
                0,
                MOST_TOKENS,
            ),
            ("engine.max_num_seqs", engine.max_num_seqs, 1, 1 << 16),
            (
                "engine.max_num_batched_tokens",
                engine.max_num_batched_tokens,
                1,
                MOST_TOKENS,
            ),
            ("engine.block_size", engine.block_size, 1, 1 << 16),
        ];
        check_sizes(&sizes)?;
        at_least("checkpoint.keep", self.checkpoint.keep, 1)
    }

    /// Only what would be asked of the allocator; the rest is the model's own to check.
    fn validate_model(&self) -> Result<(), String> {
        let model = &self.model;
        let sizes = [
            ("hidden_size", model.hidden_size, 1 << 16),
            ("intermediate_size", model.intermediate_size, 1 << 18),
            (
                "moe_intermediate_size",
                model.moe_intermediate_size,
                1 << 18,
            ),
            ("num_hidden_layers", model.num_hidden_layers, 256),
            ("num_attention_heads", model.num_attention_heads, 1024),
            ("n_routed_experts", model.n_routed_experts, 1024),
            ("n_shared_experts", model.n_shared_experts, 64),
            ("num_experts_per_tok", model.num_experts_per_tok, 1024),
            ("first_k_dense_replace", model.first_k_dense_replace, 256),
            ("q_lora_rank", model.q_lora_rank, 1 << 16),
            ("kv_lora_rank", model.kv_lora_rank, 1 << 16),
            ("qk_nope_head_dim", model.qk_nope_head_dim, 1 << 12),
            ("qk_rope_head_dim", model.qk_rope_head_dim, 1 << 12),
            ("v_head_dim", model.v_head_dim, 1 << 12),
            (
                "num_nextn_predict_layers",
                model.num_nextn_predict_layers,
                1,
            ),
            (
                "max_position_embeddings",
                model.max_position_embeddings,
                MOST_TOKENS,
            ),
        ];
        sizes
            .iter()
            .try_for_each(|&(key, value, most)| at_most(&format!("model.{key}"), value, most))
    }

    fn validate_task(&self) -> Result<(), String> {
        let task = &self.task;
        let numbers = [
            ("task.numbers", task.numbers, 3, 4),
            ("task.max_number", task.max_number as usize, 10, 999),
            ("task.first_step_tries", task.first_step_tries, 1, 1000),
            ("task.last_numbers_per_try", task.last_numbers_per_try, 1, 3),
            ("task.digits", task.digits[0] as usize, 1, 3),
            ("task.digits", task.digits[1] as usize, 1, 3),
        ];
        at_most("task.max_trace_tokens", task.max_trace_tokens, MOST_TOKENS)?;
        for (key, value, least, most) in numbers {
            if !(least..=most).contains(&value) {
                return Err(format!(
                    "{key} = {value}: from {least} to {most} is allowed"
                ));
            }
        }
        Ok(())
    }

    fn validate_sft(&self) -> Result<(), String> {
        let sft = &self.sft;
        check_sizes(&[
            ("sft.piece_tokens", sft.piece_tokens, 16, MOST_TOKENS),
            ("sft.tokens_per_step", sft.tokens_per_step, 1, 1 << 26),
        ])?;
        if !sft.tokens_per_step.is_multiple_of(sft.piece_tokens) {
            return Err(format!(
                "sft.tokens_per_step = {}: a multiple of sft.piece_tokens = {} is needed",
                sft.tokens_per_step, sft.piece_tokens
            ));
        }
        let rates = [
            ("learning_rate", sft.learning_rate, 10.0),
            ("final_lr_fraction", sft.final_lr_fraction, 1.0),
            ("weight_decay", sft.weight_decay, 10.0),
            ("balance_loss_alpha", sft.balance_loss_alpha, 1.0),
            ("mtp_loss_weight", sft.mtp_loss_weight, 10.0),
            ("bias_update_speed", sft.bias_update_speed, 1.0),
        ];
        rates
            .iter()
            .try_for_each(|&(key, value, most)| range(&format!("sft.{key}"), value, 0.0, most))?;
        adam("sft", sft.beta1, sft.beta2, sft.eps, sft.max_grad_norm)?;
        for &weight in &sft.attempt_weights {
            range("sft.attempt_weights", weight, 0.0, 1e6)?;
        }
        if !sft.attempt_weights.is_empty()
            && sft.attempt_weights.iter().all(|&weight| weight == 0.0)
        {
            return Err("sft.attempt_weights: at least one must be above 0".to_string());
        }
        validate_mix(sft)
    }

    fn validate_grpo(&self) -> Result<(), String> {
        let grpo = &self.grpo;
        let (problems, group) = (grpo.problems_per_step, grpo.group_size);
        let limit = grpo.max_completion_tokens;
        check_sizes(&[
            ("grpo.problems_per_step", problems, 1, 1 << 16),
            ("grpo.group_size", group, 2, 1 << 16),
            ("grpo.piece_tokens", grpo.piece_tokens, 16, MOST_TOKENS),
            ("grpo.max_completion_tokens", limit, 0, MOST_TOKENS),
        ])?;
        at_most(
            "grpo.problems_per_step times grpo.group_size",
            problems * group,
            MOST_SEQUENCES,
        )?;
        at_least("grpo.updates_per_batch", grpo.updates_per_batch as usize, 1)?;
        range("grpo.temperature", grpo.temperature, 0.01, 100.0)?;
        let rates = [
            ("learning_rate", grpo.learning_rate, 10.0),
            ("final_lr_fraction", grpo.final_lr_fraction, 1.0),
            ("weight_decay", grpo.weight_decay, 10.0),
            ("clip_eps_low", grpo.clip_eps_low, 1.0),
            ("clip_eps_high", grpo.clip_eps_high, 1e6),
            ("kl_coef", grpo.kl_coef, 1e6),
            ("format_reward", grpo.format_reward, 1e6),
            ("balance_loss_alpha", grpo.balance_loss_alpha, 1.0),
            ("bias_update_speed", grpo.bias_update_speed, 1.0),
        ];
        rates
            .iter()
            .try_for_each(|&(key, value, most)| range(&format!("grpo.{key}"), value, 0.0, most))?;
        adam("grpo", grpo.beta1, grpo.beta2, grpo.eps, grpo.max_grad_norm)
    }
}

fn validate_mix(sft: &SftConfig) -> Result<(), String> {
    for part in &sft.mix {
        range("sft.mix.weight", part.weight, 0.0, 1e6)?;
    }
    // The active parts change only where one begins or ends.
    let changes = sft
        .mix
        .iter()
        .flat_map(|part| [part.from_step, part.until_step]);
    for step in changes.chain([0]).filter(|&step| step < sft.steps) {
        let active = |from: u64, until: u64| (from..until).contains(&step);
        let weight: f64 = sft
            .mix
            .iter()
            .filter(|p| active(p.from_step, p.until_step))
            .map(|p| p.weight)
            .sum();
        if !sft.mix.is_empty() && weight <= 0.0 {
            return Err(format!("sft.mix: no part has a weight at step {step}"));
        }
    }
    Ok(())
}

fn adam(section: &str, beta1: f64, beta2: f64, eps: f64, max_grad_norm: f64) -> Result<(), String> {
    range(&format!("{section}.beta1"), beta1, 0.0, 0.999_999)?;
    range(&format!("{section}.beta2"), beta2, 0.0, 0.999_999)?;
    range(&format!("{section}.eps"), eps, 1e-30, 1.0)?;
    range(
        &format!("{section}.max_grad_norm"),
        max_grad_norm,
        1e-9,
        1e9,
    )
}

fn range(key: &str, value: f64, least: f64, most: f64) -> Result<(), String> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(format!(
            "{key} = {value}: from {least} to {most} is allowed"
        ))
    }
}

fn at_least(key: &str, value: usize, least: usize) -> Result<(), String> {
    if value >= least {
        Ok(())
    } else {
        Err(format!("{key} = {value}: at least {least} is needed"))
    }
}

fn at_most(key: &str, value: usize, most: usize) -> Result<(), String> {
    if value <= most {
        Ok(())
    } else {
        Err(format!("{key} = {value}: at most {most} is allowed"))
    }
}

/// Key, value, least, most.
fn check_sizes(sizes: &[(&str, usize, usize, usize)]) -> Result<(), String> {
    sizes.iter().try_for_each(|&(key, value, least, most)| {
        at_least(key, value, least)?;
        at_most(key, value, most)
    })
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text
        .as_bytes()
        .iter()
        .take(at)
        .filter(|&&byte| byte == b'\n')
        .count()
}

/// Serde's words for an unknown key list every valid one in backticks after it; the nearest is what
/// was meant.
fn explained(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let (true, Some(key)) = (unknown, quoted.next()) else {
        return message.trim().to_string();
    };
    let noun = if message.starts_with("unknown field") {
        "key"
    } else {
        "value"
    };
    match quoted.min_by_key(|valid| edit_distance(key, valid)) {
        Some(nearest) => format!("unknown {noun} `{key}`; did you mean `{nearest}`?"),
        None => format!("unknown {noun} `{key}`"),
    }
}

/// Levenshtein's distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_config::{MixPart, StyleName};

    fn error_of(text: &str) -> String {
        let error = RunConfig::from_toml(text, "run.toml").expect_err(text);
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn defaults_are_valid_and_survive_the_round_trip() {
        let mut config = RunConfig::from_toml("", "nothing").expect("defaults");
        assert_eq!(config, RunConfig::default());
        let part = |style, weight, from_step, until_step| MixPart {
            style,
            weight,
            from_step,
            until_step,
        };
        config.sft.mix = vec![
            part(StyleName::Row, 1.0, 0, i64::MAX as u64),
            part(StyleName::Blurt, 1.5, 1800, 2000),
        ];
        config.sft.attempt_weights = vec![1.0, 3.0];
        config.seed = 7;
        let text = config.to_toml();
        assert_eq!(
            RunConfig::from_toml(&text, "again").expect("own text"),
            config
        );
    }

    #[test]
    fn a_typo_names_file_line_key_and_the_nearest_key() {
        let error = error_of("seed = 1\n[sft]\nsteps = 3\nlearning_rat = 0.1\n");
        assert_eq!(
            error,
            "run.toml:4: unknown key `learning_rat`; did you mean `learning_rate`?"
        );
        let error = error_of("[grppo]\nsteps = 3\n");
        assert_eq!(
            error,
            "run.toml:1: unknown key `grppo`; did you mean `grpo`?"
        );
        let error = error_of("[[sft.mix]]\nstyle = \"rows\"\nweight = 1.0\n");
        assert_eq!(
            error,
            "run.toml:2: unknown value `rows`; did you mean `row`?"
        );
        let error = error_of("[sft]\nsteps = \"many\"\n");
        assert!(
            error.starts_with("run.toml:2: ") && error.contains("string"),
            "{error}"
        );
        assert!(error_of("[sft\n").starts_with("run.toml:1: "));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for (text, part) in [
            ("[task]\nnumbers = 5", "task.numbers = 5"),
            (
                "[sft]\ntokens_per_step = 1000\npiece_tokens = 300",
                "a multiple of sft.piece_tokens",
            ),
            ("[sft]\nlearning_rate = nan", "sft.learning_rate = NaN"),
            ("[grpo]\ngroup_size = 1", "grpo.group_size = 1: at least 2"),
            ("[sft]\nattempt_weights = [0.0]", "attempt_weights"),
            (
                "[sft]\nsteps = 10\n[[sft.mix]]\nstyle = \"row\"\nweight = 1.0\nuntil_step = 9",
                "no part has a weight at step 9",
            ),
        ] {
            let error = error_of(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_that_nobody_can_mean_are_refused_by_name() {
        for (section, key) in [
            ("engine", "max_num_seqs"),
            ("engine", "max_num_batched_tokens"),
            ("engine", "block_size"),
            ("grpo", "problems_per_step"),
            ("grpo", "group_size"),
            ("grpo", "piece_tokens"),
            ("grpo", "max_completion_tokens"),
            ("sft", "piece_tokens"),
            ("sft", "tokens_per_step"),
            ("task", "max_trace_tokens"),
            ("eval", "problems"),
            ("eval", "max_completion_tokens"),
            ("model", "hidden_size"),
            ("model", "num_hidden_layers"),
            ("model", "n_routed_experts"),
            ("model", "max_position_embeddings"),
        ] {
            let error = error_of(&format!("[{section}]\n{key} = 1000000000000\n"));
            let expected = format!("{section}.{key} = 1000000000000: at most ");
            assert!(error.contains(&expected), "{error}");
        }
        let error = error_of("[grpo]\nproblems_per_step = 60000\ngroup_size = 60000\n");
        assert!(error.contains("= 3600000000: at most"), "{error}");
    }

    #[test]
    fn edit_distances() {
        for (a, b, distance) in [("kitten", "sitting", 3), ("", "ab", 2), ("abc", "abc", 0)] {
            assert_eq!(edit_distance(a, b), distance);
        }
    }
}
