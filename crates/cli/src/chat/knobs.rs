//! How answers are sampled, as far as the user says.

use clap::Args;
use engine::SamplingParams;
use serde_json::Value;

use crate::commands::generate::{share, temperature};

/// What is absent is left to the model's own settings: the engine's defaults here, the server's
/// there.
#[derive(Args, Clone, Debug, Default, PartialEq)]
#[command(next_help_heading = "Sampling")]
pub struct Knobs {
    /// 0 takes the likeliest token each time
    #[arg(long, value_name = "X", value_parser = temperature)]
    temperature: Option<f32>,
    /// Only the likeliest tokens that hold this share together
    #[arg(long, value_name = "P", value_parser = share)]
    top_p: Option<f32>,
    /// Only the K likeliest tokens; 0 for all
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Only tokens at least this share as likely as the likeliest
    #[arg(long, value_name = "P", value_parser = share)]
    min_p: Option<f32>,
    /// End an answer after so many tokens, thinking included
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
}

impl Knobs {
    /// Sets what `/set` names; the value `default` leaves it to the model again.
    ///
    /// # Errors
    /// In words: no such setting, or not a value of it.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = |parse: fn(&str) -> Result<f32, String>| match value {
            "default" => Ok(None),
            value => parse(value)
                .map(Some)
                .map_err(|why| format!("{name} {value}: {why}")),
        };
        let count = || match value {
            "default" => Ok(None),
            value => match value.parse() {
                Ok(count) => Ok(Some(count)),
                Err(_) => Err(format!("{name} {value}: not a count")),
            },
        };
        match name {
            "temperature" => self.temperature = number(temperature)?,
            "top_p" => self.top_p = number(share)?,
            "top_k" => self.top_k = count()?,
            "min_p" => self.min_p = number(share)?,
            "max_tokens" => self.max_tokens = count()?,
            _ => {
                return Err(format!(
                    "{name}: settings are temperature, top_p, top_k, min_p, max_tokens and seed"
                ));
            }
        }
        Ok(())
    }

    /// Adds what is set to a request, under the API's names.
    pub fn write(&self, body: &mut Value) {
        let shares = [
            ("temperature", self.temperature),
            ("top_p", self.top_p),
            ("min_p", self.min_p),
        ];
        for (name, value) in shares {
            if let Some(value) = value {
                body[name] = decimal(value);
            }
        }
        for (name, value) in [("top_k", self.top_k), ("max_tokens", self.max_tokens)] {
            if let Some(value) = value {
                body[name] = Value::from(value);
            }
        }
    }

    /// For the engine, with room for so many tokens.
    pub fn params(&self, room: usize, stop_token_ids: &[u32], seed: u64) -> SamplingParams {
        let default = SamplingParams::default();
        SamplingParams {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_p: self.top_p.unwrap_or(default.top_p),
            top_k: self.top_k.unwrap_or(default.top_k),
            min_p: self.min_p.unwrap_or(default.min_p),
            max_tokens: self.max_tokens.unwrap_or(room).min(room),
            stop_token_ids: stop_token_ids.to_vec(),
            seed,
            ..default
        }
    }
}

/// Through its decimal digits, so that 0.7 stays 0.7.
fn decimal(value: f32) -> Value {
    let digits = value.to_string().parse::<f64>();
    Value::from(digits.unwrap_or(f64::from(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_set_is_sent_and_nothing_else() {
        let mut knobs = Knobs::default();
        let mut body = json!({"seed": 3});
        knobs.write(&mut body);
        assert_eq!(body, json!({"seed": 3}));
        assert_eq!(knobs.params(40, &[7], 3).max_tokens, 40);
        for (name, value) in [
            ("temperature", "0.6"),
            ("top_p", "0.95"),
            ("top_k", "20"),
            ("min_p", "0.1"),
            ("max_tokens", "9"),
        ] {
            knobs.set(name, value).expect(name);
        }
        knobs.set("top_k", "default").expect("no value again");
        knobs.write(&mut body);
        let expected = json!({"seed": 3, "temperature": 0.6, "top_p": 0.95, "min_p": 0.1,
            "max_tokens": 9});
        assert_eq!(body, expected);
        let params = knobs.params(40, &[7], 3);
        assert_eq!(
            (params.temperature, params.top_k, params.max_tokens),
            (0.6, 0, 9)
        );
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        let mut knobs = Knobs::default();
        for (name, value, word) in [
            ("temperature", "hot", "not a number"),
            ("top_p", "2", "between 0 and 1"),
            ("top_k", "-1", "not a count"),
            ("topp", "1", "settings are"),
        ] {
            let said = knobs.set(name, value).expect_err(name);
            assert!(said.contains(word), "{said}");
        }
        assert_eq!(knobs, Knobs::default());
    }
}
