//! The two readers of the families that this program runs must agree.

use std::path::Path;

use serde_json::{Value, json};

use super::{Fields, read};
use crate::error::Error;
use crate::shape::Shape;

/// Configurations of small models of every family that runs, as the golden tests have them.
fn golden() -> Vec<(String, Value)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&root).expect("the golden folder") {
        let path = entry.expect("an entry").path().join("config.json");
        if let Ok(text) = std::fs::read_to_string(&path) {
            let value = serde_json::from_str(&text).expect("JSON");
            found.push((path.display().to_string(), value));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(found.len() >= 16, "{} golden configurations", found.len());
    found
}

fn own(value: &Value) -> Result<Shape, Error> {
    let map = value.as_object().expect("an object");
    read(&Fields::new(map, String::new()))
}

/// What a hand or a converter may do to one field.
fn variants(value: &Value, key: &str) -> Vec<Value> {
    let mut variants = Vec::new();
    let mut without = value.clone();
    without.as_object_mut().expect("an object").remove(key);
    variants.push(without);
    let mut put = |new: Value| {
        let mut changed = value.clone();
        changed[key] = new;
        variants.push(changed);
    };
    put(Value::Null);
    match &value[key] {
        Value::Bool(old) => put(json!(!old)),
        Value::Number(old) => {
            if let Some(old) = old.as_u64() {
                for new in [0, 1, old + 1, 2 * old, old / 2] {
                    put(json!(new));
                }
            }
        }
        _ => {}
    }
    variants
}

#[test]
fn both_readers_see_the_same_shape_in_every_variant_that_runs() {
    let mut compared = 0;
    for (path, value) in golden() {
        let mut all = vec![value.clone()];
        let keys: Vec<String> = value
            .as_object()
            .expect("an object")
            .keys()
            .cloned()
            .collect();
        for key in &keys {
            all.extend(variants(&value, key));
        }
        for variant in all {
            let Ok(config) = model::Config::from_json(&variant.to_string()) else {
                continue;
            };
            match own(&variant) {
                Ok(shape) => {
                    let mut expected = Shape::from(&config);
                    // How far a silent file reaches is a default of transformers, not a fact.
                    if shape.max_position_embeddings.is_none() {
                        expected.max_position_embeddings = None;
                    }
                    assert_eq!(shape, expected, "{path}: {variant}");
                }
                // Rounding down, as transformers does here, is no more than a guess elsewhere.
                Err(Error::Config { field, message })
                    if field == "num_attention_heads" && message.contains("head_dim") => {}
                Err(error) => panic!("{path}: {error}: {variant}"),
            }
            compared += 1;
        }
    }
    assert!(compared > 1000, "only {compared} variants run");
}

#[test]
fn shapes_count_what_the_models_count() {
    for (path, value) in golden() {
        let config = model::Config::from_json(&value.to_string())
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        let shape = Shape::from(&config);
        let parts = shape.parameters();
        let total = parts.total() + parts.multi_token_prediction;
        assert_eq!(total, config.parameters_total(), "{path}");
        let active = shape.active_parameters().total();
        assert_eq!(active, config.parameters_active(), "{path}");
        let values = shape.cache_bytes_per_token(crate::shape::CacheWidth(1.0));
        assert_eq!(
            values.0 as usize,
            config.cache_elements_per_token(),
            "{path}"
        );
    }
}
