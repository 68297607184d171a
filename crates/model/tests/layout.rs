//! The flat buffer: every tensor of DeepSeek-V3 in its place, once.

use model::{
    Attention, AttentionOffsets, Config, DenseLayers, Layout, Mla, MlpOffsets, Moe, QueryOffsets,
    TensorSpec,
};

mod small;
use small::small_config;

fn spec<'a>(layout: &'a Layout, name: &str) -> &'a TensorSpec {
    layout
        .tensors
        .iter()
        .find(|spec| spec.name == name)
        .unwrap_or_else(|| panic!("no {name}"))
}

fn configurations() -> Vec<Config> {
    let moe = small_config();
    let (mla, mixture) = (moe.attention.mla().clone(), moe.moe.clone().unwrap());
    let direct = Config {
        attention: Attention::Mla(Mla {
            q_lora_rank: None,
            ..mla.clone()
        }),
        num_nextn_predict_layers: 1,
        ..moe.clone()
    };
    let dense = Config {
        moe: None,
        ..moe.clone()
    };
    // Odd sizes, so that padding and the lack of it inside a block of experts both show.
    let odd = Config {
        hidden_size: 7,
        attention: Attention::Mla(Mla {
            kv_lora_rank: 5,
            ..mla
        }),
        moe: Some(Moe {
            moe_intermediate_size: 3,
            ..mixture
        }),
        ..moe.clone()
    };
    vec![moe, direct, dense, odd]
}

#[test]
fn tensors_are_aligned_ordered_and_apart() {
    for config in configurations() {
        let layout = Layout::new(&config);
        let mut end = 0;
        for spec in &layout.tensors {
            let gap = spec.offset - end;
            assert!(gap < 16, "{} follows a gap of {gap}", spec.name);
            let inside_a_block = spec.name.contains(".experts.") && !spec.name.contains(".0.");
            assert!(
                spec.offset % 16 == 0 || inside_a_block,
                "{} is not aligned",
                spec.name
            );
            assert_eq!(spec.len, spec.shape.iter().product::<usize>());
            assert_eq!(
                spec.trainable,
                spec.range().end <= layout.trainable_len,
                "{}",
                spec.name
            );
            assert_eq!(
                spec.trainable,
                !spec.name.ends_with("e_score_correction_bias")
            );
            end = spec.range().end;
        }
        assert_eq!(layout.total_len, end.next_multiple_of(16));
        let numbers: usize = layout.tensors.iter().map(|spec| spec.len).sum();
        assert_eq!(numbers as u64, config.parameters_total());
    }
}

#[test]
fn deepseek_v3_has_the_shapes_of_its_checkpoint() {
    // hidden 7168, 128 heads of 128 + 64, value 128: the shapes listed with the model's weights.
    let config = Config {
        vocab_size: 129_280,
        hidden_size: 7168,
        intermediate_size: 18_432,
        num_hidden_layers: 61,
        num_attention_heads: 128,
        attention: Attention::Mla(Mla {
            q_lora_rank: Some(1536),
            kv_lora_rank: 512,
            qk_nope_head_dim: 128,
            qk_rope_head_dim: 64,
            v_head_dim: 128,
        }),
        moe: small_config().moe.map(|moe| Moe {
            n_routed_experts: 256,
            n_shared_experts: 1,
            num_experts_per_tok: 8,
            moe_intermediate_size: 2048,
            dense_layers: DenseLayers::First(3),
            ..moe
        }),
        ..small_config()
    };
    let layout = Layout::new(&config);
    for (name, shape) in [
        ("model.embed_tokens.weight", &[129_280, 7168][..]),
        ("lm_head.weight", &[129_280, 7168]),
        ("model.norm.weight", &[7168]),
        ("model.layers.0.self_attn.q_a_proj.weight", &[1536, 7168]),
        ("model.layers.0.self_attn.q_a_layernorm.weight", &[1536]),
        ("model.layers.0.self_attn.q_b_proj.weight", &[24_576, 1536]),
        (
            "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
            &[576, 7168],
        ),
        ("model.layers.0.self_attn.kv_a_layernorm.weight", &[512]),
        ("model.layers.0.self_attn.kv_b_proj.weight", &[32_768, 512]),
        ("model.layers.60.self_attn.o_proj.weight", &[7168, 16_384]),
        ("model.layers.60.input_layernorm.weight", &[7168]),
        ("model.layers.60.post_attention_layernorm.weight", &[7168]),
        ("model.layers.2.mlp.gate_proj.weight", &[18_432, 7168]),
        ("model.layers.2.mlp.down_proj.weight", &[7168, 18_432]),
        ("model.layers.3.mlp.gate.weight", &[256, 7168]),
        ("model.layers.3.mlp.gate.e_score_correction_bias", &[256]),
        (
            "model.layers.60.mlp.experts.255.up_proj.weight",
            &[2048, 7168],
        ),
        (
            "model.layers.60.mlp.experts.255.down_proj.weight",
            &[7168, 2048],
        ),
        (
            "model.layers.3.mlp.shared_experts.gate_proj.weight",
            &[2048, 7168],
        ),
    ] {
        assert_eq!(spec(&layout, name).shape, shape, "{name}");
    }
    // Three tensors in all, ten per dense layer and 12 and 3 x 256 per MoE layer, and one bias.
    let per_layer = 4 + 5;
    let expected = 3 + 61 * per_layer + 3 * 3 + 58 * (1 + 3 * 256 + 3 + 1);
    assert_eq!(layout.tensors.len(), expected);
}

#[test]
fn named_ranges_are_the_ranges_of_the_named_tensors() {
    for config in configurations() {
        let layout = Layout::new(&config);
        let range = |name: &str| spec(&layout, name).range();
        assert_eq!(layout.embed_tokens, range("model.embed_tokens.weight"));
        assert_eq!(layout.norm, range("model.norm.weight"));
        assert_eq!(layout.lm_head, range("lm_head.weight"));
        for (idx, layer) in layout.layers.iter().enumerate() {
            let of = |name: &str| range(&format!("model.layers.{idx}.{name}.weight"));
            assert_eq!(layer.input_layernorm, of("input_layernorm"));
            assert_eq!(
                layer.post_attention_layernorm,
                of("post_attention_layernorm")
            );
            let AttentionOffsets::Mla(attention) = &layer.attention else {
                panic!("latent attention");
            };
            assert_eq!(
                attention.kv_a_proj_with_mqa,
                of("self_attn.kv_a_proj_with_mqa")
            );
            assert_eq!(attention.kv_a_layernorm, of("self_attn.kv_a_layernorm"));
            assert_eq!(attention.kv_b_proj, of("self_attn.kv_b_proj"));
            assert_eq!(attention.o_proj, of("self_attn.o_proj"));
            match &attention.query {
                QueryOffsets::Direct { q_proj } => assert_eq!(*q_proj, of("self_attn.q_proj")),
                QueryOffsets::LowRank {
                    q_a_proj,
                    q_a_layernorm,
                    q_b_proj,
                } => {
                    assert_eq!(*q_a_proj, of("self_attn.q_a_proj"));
                    assert_eq!(*q_a_layernorm, of("self_attn.q_a_layernorm"));
                    assert_eq!(*q_b_proj, of("self_attn.q_b_proj"));
                }
            }
            let (swiglu, prefix) = match &layer.mlp {
                MlpOffsets::Dense(swiglu) => (swiglu, "mlp"),
                MlpOffsets::Moe(moe) => (moe.shared.as_ref().unwrap(), "mlp.shared_experts"),
            };
            assert_eq!(swiglu.gate_proj, of(&format!("{prefix}.gate_proj")));
            assert_eq!(swiglu.up_proj, of(&format!("{prefix}.up_proj")));
            assert_eq!(swiglu.down_proj, of(&format!("{prefix}.down_proj")));
            assert_eq!(
                matches!(layer.mlp, MlpOffsets::Moe(_)),
                config.is_moe_layer(idx)
            );
        }
    }
}

#[test]
fn the_experts_of_a_kind_are_one_block_without_holes() {
    for config in configurations() {
        let layout = Layout::new(&config);
        for (idx, layer) in layout.layers.iter().enumerate() {
            let MlpOffsets::Moe(moe) = &layer.mlp else {
                continue;
            };
            let mlp = format!("model.layers.{idx}.mlp");
            assert_eq!(
                moe.gate,
                spec(&layout, &format!("{mlp}.gate.weight")).range()
            );
            let bias = spec(&layout, &format!("{mlp}.gate.e_score_correction_bias"));
            assert_eq!(moe.e_score_correction_bias, bias.range());
            for (kind, block) in [
                ("gate_proj", &moe.experts_gate_proj),
                ("up_proj", &moe.experts_up_proj),
                ("down_proj", &moe.experts_down_proj),
            ] {
                let mut end = block.start;
                for expert in 0..config.n_routed_experts() {
                    let name = format!("{mlp}.experts.{expert}.{kind}.weight");
                    assert_eq!(spec(&layout, &name).offset, end, "{name}");
                    end = spec(&layout, &name).range().end;
                }
                assert_eq!(end, block.end);
            }
        }
    }
}

#[test]
#[should_panic(expected = "num_hidden_layers")]
fn an_invalid_configuration_has_no_layout() {
    Layout::new(&Config {
        num_hidden_layers: 0,
        ..small_config()
    });
}
