//! Shapes out of the `config.json` of any published family.
//!
//! What crate `model` reads, it reads here too, so that a model which runs is planned as it runs.
//! Everything else goes through a reader of its own, which knows more families and asks for less:
//! only fields that change a count. That covers other families, and those files of the families
//! that run which `model` refuses for what arithmetic does not mind (another RoPE, a kind of
//! quantisation, a missing scale of the router) or for what it cannot compute but this crate can
//! count (windows, biases, an indexer).

mod families;
mod fields;
mod layers;
mod mixture;

use serde_json::{Map, Value};

use crate::error::Error;
use crate::nearest::nearest;
use crate::shape::Shape;
use families::{FAMILIES, Family};
use fields::{Fields, brief};

/// Where multimodal configurations keep the language model.
const NESTED: [&str; 4] = [
    "text_config",
    "llm_config",
    "language_config",
    "thinker_config",
];

/// Tables within tables that are followed; published files have two.
const DEEPEST: usize = 3;

/// 1,600 times DeepSeek-V3, as in crate `model`: below it all sums fit 64 bits.
const MAX_PARAMETERS: u128 = 1 << 50;

/// The shape that the text of a `config.json` describes. Of a multimodal model it is that of the
/// language model in it.
///
/// # Errors
/// [`Error::Config`] naming the field: absent, out of range, or at odds with another.
pub fn shape_from_json(text: &str) -> Result<Shape, Error> {
    let value: Value = serde_json::from_str(text)
        .map_err(|error| Error::config("config.json", format!("not valid JSON: {error}")))?;
    shape_from_value(&value)
}

/// As [`shape_from_json`], of a table that is already parsed.
pub(crate) fn shape_from_value(value: &Value) -> Result<Shape, Error> {
    let (map, path) = language_model(value)?;
    let text = Value::Object(map.clone()).to_string();
    if let Ok(config) = model::Config::from_json(&text) {
        return Ok(Shape::from(&config));
    }
    read(&Fields::new(&map, path))
}

/// The table of the language model, and its path in the file.
fn language_model(value: &Value) -> Result<(Map<String, Value>, String), Error> {
    let Value::Object(mut map) = value.clone() else {
        let message = format!("{} is not a JSON object", brief(value));
        return Err(Error::config("config.json", message));
    };
    let mut path = String::new();
    for _ in 0..DEEPEST {
        let Some(name) = NESTED
            .into_iter()
            .find(|name| map.get(*name).is_some_and(|v| !v.is_null()))
        else {
            break;
        };
        let Some(Value::Object(mut inner)) = map.remove(name) else {
            let field = format!("{path}{name}");
            return Err(Error::config(
                &field,
                "not an object; the language model is",
            ));
        };
        let tied = "tie_word_embeddings";
        if let (None, Some(outer)) = (inner.get(tied), map.remove(tied)) {
            inner.insert(tied.to_string(), outer);
        }
        path = format!("{path}{name}.");
        map = inner;
    }
    Ok((map, path))
}

/// By this crate's own reader.
fn read(fields: &Fields) -> Result<Shape, Error> {
    let family = family(fields)?;
    if fields.flag("is_encoder_decoder", false)? {
        let message = "true is not supported: every model here only decodes";
        return Err(fields.error("is_encoder_decoder", message));
    }
    let shape = layers::shape(fields, family)?;
    if parameters(&shape) > MAX_PARAMETERS {
        let message = format!(
            "the sizes make {} parameters, more than {MAX_PARAMETERS}; check each of them",
            parameters(&shape)
        );
        return Err(fields.error("hidden_size", message));
    }
    Ok(shape)
}

fn family(fields: &Fields) -> Result<&'static Family, Error> {
    let field = "model_type";
    let Some(name) = fields.text(field)? else {
        let message = format!("absent; {} are known", known("").join(", "));
        return Err(fields.error(field, message));
    };
    FAMILIES
        .iter()
        .find(|family| family.model_type == name)
        .ok_or_else(|| {
            let known = known(name).join(", ");
            let name = brief(&Value::from(name));
            fields.error(field, format!("{name} is not known; {known} are"))
        })
}

/// Every `model_type`, those spelt like `name` first.
fn known(name: &str) -> Vec<String> {
    let types = || FAMILIES.iter().map(|family| family.model_type);
    // A hostile name would make the search slow; no type is longer than this.
    let name: String = name.chars().take(40).collect();
    let mut known = nearest(&name, types());
    for model_type in types() {
        if !known.iter().any(|nearer| nearer == model_type) {
            known.push(model_type.to_string());
        }
    }
    known
}

/// As [`Shape::parameters`] with multi-token prediction, in 128 bits: this is what makes sure that
/// 64 suffice from here on.
fn parameters(shape: &Shape) -> u128 {
    let hidden = shape.hidden_size;
    let layer = |layer: &crate::shape::Layer| -> u128 {
        let products = layer.products(hidden);
        let products = products.iter().map(|product| {
            u128::from(product.inputs) * u128::from(product.outputs) * u128::from(product.stored)
        });
        products.sum::<u128>() + u128::from(layer.vectors(hidden, shape.norm_vectors))
    };
    let layers: u128 = shape
        .blocks
        .iter()
        .map(|blocks| u128::from(blocks.count) * layer(&blocks.layer))
        .sum();
    let hidden = u128::from(hidden);
    let module = layer(shape.last_layer()) + 2 * hidden * hidden + 6 * hidden;
    let embeddings =
        hidden * (2 * u128::from(shape.vocab_size) + u128::from(shape.learned_positions));
    layers + u128::from(shape.mtp_modules) * module + embeddings
}

#[cfg(test)]
mod tests;
