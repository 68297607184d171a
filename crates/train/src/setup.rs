//! What both stages need: settings, task, tokenizer; and the model they start from.

use kernels::Backend;
use model::{Model, Numerics};
use tasks::{Countdown, Multiplication, Task};
use text::{Tokenizer, TokenizerConfig};

use crate::error::Error;
use crate::examples::rl_problem;
use crate::fourier::fourier_init;
use crate::run_config::{RunConfig, TaskConfig, TaskName};

/// A model trained from nothing has no more: 16 bytes each while it trains.
const MOST_PARAMETERS: usize = 1 << 32;

/// The prompts of a task are all of one form; among this many is one of the longest.
const PROMPTS_LOOKED_AT: u64 = 256;

/// A run's settings with the task and the tokenizer made from them.
pub struct Setup {
    pub config: RunConfig,
    pub task: Box<dyn Task>,
    pub tokenizer: Tokenizer,
    /// Ends a completion.
    pub eos_token_id: u32,
}

impl Setup {
    /// The task of the settings with the tokenizer of all our tasks, whose ids `0..=999` are the
    /// numbers themselves.
    ///
    /// # Errors
    /// [`Error::Config`] for settings out of range.
    pub fn new(config: RunConfig) -> Result<Setup, Error> {
        let tokenizer = Tokenizer::from_json(&tokenizer_json()?)?;
        Setup::with_tokenizer(config, tokenizer)
    }

    /// As [`Setup::new`] with the tokenizer of another model, which must know `<eos>`.
    ///
    /// # Errors
    /// [`Error::Config`] for settings out of range or a tokenizer without `<eos>`.
    pub fn with_tokenizer(config: RunConfig, tokenizer: Tokenizer) -> Result<Setup, Error> {
        config.check()?;
        let eos_token_id = tokenizer.token_to_id(tasks::EOS).ok_or_else(|| {
            Error::Config(format!(
                "the tokenizer has no token {}; choose another model",
                tasks::EOS
            ))
        })?;
        let task = task(&config.task);
        Ok(Setup {
            config,
            task,
            tokenizer,
            eos_token_id,
        })
    }

    pub fn numerics(&self) -> Numerics {
        Numerics {
            precision: self.config.numerics.precision.into(),
            head_precision: self.config.numerics.head_precision.into(),
        }
    }

    /// The configuration of a model trained from nothing.
    ///
    /// # Errors
    /// [`Error::Model`] naming the field that does not fit; [`Error::Config`] for a model that is
    /// too large.
    pub fn model_config(&self) -> Result<model::Config, Error> {
        let shape = &self.config.model;
        let config = model::Config {
            architecture: model::Architecture::DeepseekV3,
            vocab_size: self.tokenizer.vocab_size(),
            hidden_size: shape.hidden_size,
            intermediate_size: shape.intermediate_size,
            num_hidden_layers: shape.num_hidden_layers,
            num_attention_heads: shape.num_attention_heads,
            attention: model::Attention::Mla(model::Mla {
                q_lora_rank: (shape.q_lora_rank > 0).then_some(shape.q_lora_rank),
                kv_lora_rank: shape.kv_lora_rank,
                qk_nope_head_dim: shape.qk_nope_head_dim,
                qk_rope_head_dim: shape.qk_rope_head_dim,
                v_head_dim: shape.v_head_dim,
            }),
            moe: shape.mixture(),
            rope: model::Rope::plain(shape.rope_theta, true),
            num_nextn_predict_layers: shape.num_nextn_predict_layers,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            bos_token_id: None,
            eos_token_id: vec![self.eos_token_id],
            pad_token_id: self.tokenizer.token_to_id(tasks::PAD),
            max_position_embeddings: shape.max_position_embeddings,
            initializer_range: shape.initializer_range,
            torch_dtype: model::WeightDtype::F32.torch_name().to_string(),
            fp8: None,
            ignored_keys: Vec::new(),
        };
        config.validate()?;
        let parameters = model::Layout::new(&config).total_len;
        if parameters > MOST_PARAMETERS {
            return Err(Error::Config(format!(
                "model: sizes of {parameters} parameters in all, and at most {MOST_PARAMETERS} \
                 are allowed; lower hidden_size, num_hidden_layers or n_routed_experts"
            )));
        }
        Ok(config)
    }

    /// The model before any training.
    ///
    /// # Errors
    /// As [`Setup::model_config`].
    pub fn initial_model(&self, backend: &dyn Backend) -> Result<Model, Error> {
        let seed = self.config.seed;
        let mut model = Model::random(self.model_config()?, self.numerics(), seed, backend);
        if self.config.model.fourier {
            let layout = model.layout.clone();
            model.update(backend, |params| fourier_init(&layout, params, seed));
        }
        Ok(model)
    }

    /// The tokenizer's files of a Hugging Face folder: name and bytes, for [`model::write_folder`];
    /// those of a model of [`Setup::model_config`].
    ///
    /// # Errors
    /// [`Error::Text`] if the tokenizer cannot be written.
    pub fn tokenizer_files(&self) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let positions = self.config.model.max_position_embeddings;
        Ok(tokenizer_files(&self.tokenizer.to_json()?, positions))
    }

    /// The tokens of a text, each below `vocab_size` of the model that will see them.
    pub(crate) fn encode(&self, text: &str, vocab_size: usize) -> Result<Vec<u32>, Error> {
        let ids = self.tokenizer.encode(text)?;
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            None => Ok(ids),
            Some(id) => Err(Error::Config(format!(
                "the tokenizer gives id {id}, beyond the model's vocab_size of {vocab_size}; use \
                 the tokenizer that belongs to the model"
            ))),
        }
    }

    /// Whether a prompt and a completion of reinforcement learning fit the positions of the model
    /// that is to be trained, so that nobody learns it only after a directory was made.
    ///
    /// # Errors
    /// [`Error::Config`] with both numbers.
    pub fn check_lengths(&self, model: &model::Config) -> Result<(), Error> {
        let positions = model.max_position_embeddings;
        let limit = self.completion_limit(self.config.grpo.max_completion_tokens);
        let mut prompt = 0;
        for index in 0..PROMPTS_LOOKED_AT {
            let text = self.task.prompt(&rl_problem(self, index));
            prompt = prompt.max(self.encode(&text, model.vocab_size)?.len());
        }
        if prompt.saturating_add(limit) <= positions {
            return Ok(());
        }
        let room = match positions.saturating_sub(prompt) {
            0 => "choose a model with more positions".to_string(),
            room => format!("set it to {room} or less, or choose a model with more positions"),
        };
        let source = match self.config.grpo.max_completion_tokens {
            0 => " (the task's own limit)",
            _ => "",
        };
        Err(Error::Config(format!(
            "grpo.max_completion_tokens = {limit}{source}: with a prompt of {prompt} tokens that \
             is beyond the model's max_position_embeddings = {positions}; {room}"
        )))
    }

    /// The limit of the settings, or the task's own where they say 0.
    pub(crate) fn completion_limit(&self, setting: usize) -> usize {
        if setting > 0 {
            setting
        } else {
            self.task.max_completion_tokens()
        }
    }
}

/// The tokenizer's files beside a model of so many positions: name and bytes.
pub(crate) fn tokenizer_files(
    tokenizer_json: &str,
    max_position_embeddings: usize,
) -> Vec<(String, Vec<u8>)> {
    let config = text::tokenizer_config(&TokenizerConfig {
        eos_token: tasks::EOS,
        pad_token: tasks::PAD,
        unk_token: tasks::UNK,
        chat_template: text::REASONING_TEMPLATE,
        model_max_length: max_position_embeddings,
    });
    let map = format!(
        "{{\n  \"eos_token\": \"{}\",\n  \"pad_token\": \"{}\",\n  \"unk_token\": \"{}\"\n}}\n",
        tasks::EOS,
        tasks::PAD,
        tasks::UNK
    );
    let file = |name: &str, bytes: Vec<u8>| (name.to_string(), bytes);
    vec![
        file("special_tokens_map.json", map.into_bytes()),
        file("tokenizer.json", tokenizer_json.as_bytes().to_vec()),
        file("tokenizer_config.json", config.into_bytes()),
    ]
}

fn tokenizer_json() -> Result<String, Error> {
    Ok(text::word_level(
        &tasks::vocabulary(),
        &tasks::SPECIAL_WORDS,
    )?)
}

fn task(config: &TaskConfig) -> Box<dyn Task> {
    match config.name {
        TaskName::Countdown => {
            let mut task = Countdown::new(config.numbers, config.max_number);
            task.first_step_tries = config.first_step_tries;
            task.last_numbers_per_try = config.last_numbers_per_try;
            if config.max_trace_tokens > 0 {
                task.max_completion_tokens = config.max_trace_tokens;
            }
            Box::new(task)
        }
        TaskName::Multiplication => {
            Box::new(Multiplication::new(config.digits[0], config.digits[1]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_the_tokenizer_load_again_and_agree() {
        let setup = Setup::new(RunConfig::default()).expect("setup");
        let files = setup.tokenizer_files().expect("files");
        let named = |name: &str| {
            let file = files.iter().find(|(found, _)| found == name).expect(name);
            String::from_utf8(file.1.clone()).expect("UTF-8")
        };
        let again = Tokenizer::from_json(&named("tokenizer.json")).expect("tokenizer.json");
        let words = "69 64 4 20 <think> 20 ~ </think> 69 - 64 <eos>";
        let ids = again.encode(words).expect("encode");
        assert_eq!(ids, setup.tokenizer.encode(words).expect("encode"));
        assert_eq!(ids[..4], [69, 64, 4, 20]);
        assert_eq!(ids.last(), Some(&setup.eos_token_id));
        let config: serde_json::Value =
            serde_json::from_str(&named("tokenizer_config.json")).expect("JSON");
        let map: serde_json::Value =
            serde_json::from_str(&named("special_tokens_map.json")).expect("JSON");
        assert_eq!(config["eos_token"], map["eos_token"]);
        assert!(
            config["chat_template"]
                .as_str()
                .is_some_and(|t| t.contains("<think>"))
        );
    }

    #[test]
    fn a_completion_beyond_the_positions_is_refused_with_both_numbers() {
        // A prompt of three numbers, their target and `<think>` has 5 tokens.
        for (limit, positions, fits) in [(59, 64, true), (60, 64, false), (1, 5, false)] {
            let mut config = RunConfig::default();
            config.grpo.max_completion_tokens = limit;
            let setup = Setup::new(config).expect("setup");
            let mut model = setup.model_config().expect("config");
            model.max_position_embeddings = positions;
            let result = setup.check_lengths(&model);
            assert_eq!(result.is_ok(), fits, "{limit} {positions}");
            if let Err(error) = result {
                assert_eq!(error.exit_code(), 2);
                let text = error.to_string();
                let setting = format!("grpo.max_completion_tokens = {limit}:");
                let other = format!("max_position_embeddings = {positions};");
                assert!(text.contains(&setting) && text.contains(&other), "{text}");
            }
        }
        // The task's own limit, where the settings give none.
        let setup = Setup::new(RunConfig::default()).expect("setup");
        let limit = setup.task.max_completion_tokens();
        let mut model = setup.model_config().expect("config");
        model.max_position_embeddings = limit + 5;
        setup.check_lengths(&model).expect("just enough");
        model.max_position_embeddings = limit + 4;
        let error = setup.check_lengths(&model).expect_err("one too few");
        assert!(
            error
                .to_string()
                .contains(&format!("= {limit} (the task's own limit)"))
        );
    }

    #[test]
    fn a_model_beyond_all_memory_is_refused() {
        let mut config = RunConfig::default();
        (config.model.hidden_size, config.model.num_hidden_layers) = (1 << 16, 256);
        let setup = Setup::new(config).expect("each size by itself is possible");
        let error = setup.model_config().expect_err("too large");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("parameters in all"), "{error}");
    }

    #[test]
    fn a_shape_that_does_not_fit_is_a_configuration_error() {
        let mut config = RunConfig::default();
        config.model.num_experts_per_tok = 99;
        let setup = Setup::new(config).expect("setup");
        let error = setup
            .model_config()
            .expect_err("more experts chosen than there are");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("num_experts_per_tok"), "{error}");
    }
}
