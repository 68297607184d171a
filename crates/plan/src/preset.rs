//! TEMP
use crate::error::Error;
use crate::shape::*;
use std::sync::OnceLock;
pub struct Preset {
    pub name: String,
    pub aliases: Vec<String>,
    pub shape: Shape,
}
fn g(v: &toml::Table, names: &[&str]) -> Option<u64> {
    names
        .iter()
        .find_map(|n| v.get(*n).and_then(|x| x.as_integer()))
        .map(|x| x as u64)
}
pub fn all() -> &'static [Preset] {
    static ALL: OnceLock<Vec<Preset>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut out = vec![];
        for t in [
            include_str!("../presets/deepseek.toml"),
            include_str!("../presets/llama.toml"),
            include_str!("../presets/qwen.toml"),
            include_str!("../presets/moonshot.toml"),
            include_str!("../presets/megatron.toml"),
            include_str!("../presets/mosaic.toml"),
            include_str!("../presets/others.toml"),
        ] {
            let v: toml::Table = t.parse().unwrap();
            for m in v["model"].as_array().unwrap() {
                let m = m.as_table().unwrap();
                let c = m["config"].as_table().unwrap();
                let name = m["name"].as_str().unwrap().to_string();
                let mut j = serde_json::to_value(c).unwrap();
                let o = j.as_object_mut().unwrap();
                for (k, v) in [
                    ("routed_scaling_factor", "2.5"),
                    ("norm_topk_prob", "true"),
                    ("scoring_func", "\"sigmoid\""),
                    ("topk_method", "\"noaux_tc\""),
                ] {
                    if !o.contains_key(k) {
                        o.insert(k.into(), serde_json::from_str(v).unwrap());
                    }
                }
                let json = serde_json::to_string(&j).unwrap();
                let shape = match model::Config::from_json(&json) {
                    Ok(c) => Shape::from(&c),
                    Err(e) => {
                        if std::env::var("DBG").is_ok() {
                            eprintln!("{name}: {e}");
                        }
                        let ty = c["model_type"].as_str().unwrap_or("");
                        if !["gpt2", "mpt", "nemotron"].contains(&ty) {
                            continue;
                        }
                        let h = g(c, &["hidden_size", "n_embd", "d_model"]).unwrap();
                        let l = g(c, &["num_hidden_layers", "n_layer", "n_layers"]).unwrap();
                        let heads = g(c, &["num_attention_heads", "n_head", "n_heads"]).unwrap();
                        let kv = g(c, &["num_key_value_heads"]).unwrap_or(heads);
                        let ffn = g(c, &["intermediate_size", "n_inner"]).unwrap_or(4 * h);
                        Shape {
                            vocab_size: g(c, &["vocab_size"]).unwrap(),
                            hidden_size: h,
                            blocks: vec![Blocks {
                                count: l,
                                layer: Layer {
                                    attention: Attention::Grouped(Grouped {
                                        num_heads: heads,
                                        num_kv_heads: kv,
                                        head_dim: h / heads,
                                        span: Span::Full,
                                        vectors: 0,
                                    }),
                                    feed_forward: FeedForward {
                                        width: ffn,
                                        gated: false,
                                        bias: false,
                                        experts: None,
                                    },
                                },
                            }],
                            mtp_modules: 0,
                            tie_word_embeddings: ty != "nemotron",
                            learned_positions: 0,
                            norm_vectors: 2,
                            max_position_embeddings: None,
                        }
                    }
                };
                out.push(Preset {
                    name,
                    aliases: vec![],
                    shape,
                });
            }
        }
        out
    })
}
pub fn find(name: &str) -> Result<&'static Preset, Error> {
    all()
        .iter()
        .find(|p| p.name == name)
        .ok_or_else(|| Error::UnknownModel {
            name: name.into(),
            nearest: vec![],
        })
}
