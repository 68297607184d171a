//! What both stages need: settings, task, tokenizer; and the model they start from.

use kernels::Backend;
use model::{Model, Numerics};
use tasks::{Countdown, Multiplication, Task};
use text::{Tokenizer, TokenizerConfig};

use crate::error::Error;
use crate::fourier::fourier_init;
use crate::run_config::{RunConfig, TaskConfig, TaskName};

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
    /// [`Error::Model`] naming the field that does not fit.
    pub fn model_config(&self) -> Result<model::Config, Error> {
        let shape = &self.config.model;
        let config = model::Config {
            vocab_size: self.tokenizer.vocab_size(),
            hidden_size: shape.hidden_size,
            intermediate_size: shape.intermediate_size,
            moe_intermediate_size: shape.moe_intermediate_size,
            num_hidden_layers: shape.num_hidden_layers,
            num_attention_heads: shape.num_attention_heads,
            n_routed_experts: shape.n_routed_experts,
            n_shared_experts: shape.n_shared_experts,
            num_experts_per_tok: shape.num_experts_per_tok,
            first_k_dense_replace: shape.first_k_dense_replace,
            q_lora_rank: (shape.q_lora_rank > 0).then_some(shape.q_lora_rank),
            kv_lora_rank: shape.kv_lora_rank,
            qk_nope_head_dim: shape.qk_nope_head_dim,
            qk_rope_head_dim: shape.qk_rope_head_dim,
            v_head_dim: shape.v_head_dim,
            rms_norm_eps: 1e-6,
            rope_theta: shape.rope_theta,
            rope_interleave: true,
            norm_topk_prob: true,
            routed_scaling_factor: shape.routed_scaling_factor,
            bos_token_id: None,
            eos_token_id: vec![self.eos_token_id],
            pad_token_id: self.tokenizer.token_to_id(tasks::PAD),
            max_position_embeddings: shape.max_position_embeddings,
            initializer_range: shape.initializer_range,
            torch_dtype: model::WeightDtype::F32.torch_name().to_string(),
            ignored_keys: Vec::new(),
        };
        config.validate()?;
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

    /// The tokenizer's files of a Hugging Face folder: name and bytes, for [`model::write_folder`].
    ///
    /// # Errors
    /// [`Error::Text`] if the tokenizer cannot be written.
    pub fn tokenizer_files(&self) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let config = text::tokenizer_config(&TokenizerConfig {
            eos_token: tasks::EOS,
            pad_token: tasks::PAD,
            unk_token: tasks::UNK,
            chat_template: text::REASONING_TEMPLATE,
            model_max_length: self.config.model.max_position_embeddings,
        });
        let map = format!(
            "{{\n  \"eos_token\": \"{}\",\n  \"pad_token\": \"{}\",\n  \"unk_token\": \"{}\"\n}}\n",
            tasks::EOS,
            tasks::PAD,
            tasks::UNK
        );
        Ok(vec![
            ("special_tokens_map.json".to_string(), map.into_bytes()),
            (
                "tokenizer.json".to_string(),
                self.tokenizer.to_json()?.into_bytes(),
            ),
            ("tokenizer_config.json".to_string(), config.into_bytes()),
        ])
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

    /// The limit of the settings, or the task's own where they say 0.
    pub(crate) fn completion_limit(&self, setting: usize) -> usize {
        if setting > 0 {
            setting
        } else {
            self.task.max_completion_tokens()
        }
    }
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
