//! What is promised of any bytes taken for a `config.json`.

use model::{Config, Error, Layout, WeightDtype};

/// More tensors than this are not laid out: the table of their names takes long beside the rest.
const MOST_EXPERTS: usize = 2000;

/// The text is refused in few words, or it is a configuration that everything can be computed
/// from, and that is the same again after it was written and read.
pub fn check(bytes: &[u8]) -> Result<(), Error> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err(Error::Usage("not UTF-8 text".to_string()));
    };
    let config = match Config::from_json(text) {
        Ok(config) => config,
        Err(error) => {
            let text = error.to_string();
            assert!(text.starts_with("model configuration: "), "{text}");
            assert!(text.chars().count() < 2000, "a message of {text}");
            assert!(!text.contains(char::is_control), "{text:?}");
            return Err(error);
        }
    };
    round_trip(&config);
    assert!(
        config.parameters_active() <= config.parameters_total() && config.parameters_total() > 0
    );
    assert!(config.flops_per_token_forward(4096.0).is_finite());
    assert!(config.softmax_scale() > 0.0, "{}", config.softmax_scale());
    let frequencies = config.rope_frequencies();
    assert!(frequencies.factor.is_finite() && frequencies.inverse.iter().all(|f| f.is_finite()));
    if config.n_routed_experts() * config.num_moe_layers() <= MOST_EXPERTS {
        let layout = Layout::new(&config);
        assert!(layout.total_len as u64 >= config.parameters_total());
    }
    Ok(())
}

/// Only what the file says about its own weights, and what it says in vain, is lost.
fn round_trip(config: &Config) {
    let dtype = match config.fp8 {
        Some(_) => WeightDtype::Fp8,
        None => WeightDtype::F32,
    };
    let written = config.to_json(dtype);
    let again = Config::from_json(&written)
        .unwrap_or_else(|error| panic!("what was written is refused: {error}\n{written}"));
    assert_eq!(again.to_json(dtype), written);
    let expected = Config {
        torch_dtype: dtype.torch_name().to_string(),
        ignored_keys: Vec::new(),
        ..config.clone()
    };
    assert_eq!(again, expected, "{written}");
}
