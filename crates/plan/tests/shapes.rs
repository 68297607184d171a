//! Shapes of presets and of configurations against published numbers.

use plan::config::shape_from_json;
use plan::preset::{self, Preset};
use plan::shape::{CacheWidth, Part, Shape, Span};
use serde_json::json;

fn named(name: &str) -> &'static Preset {
    preset::find(name).unwrap_or_else(|error| panic!("{error}"))
}

fn shape(value: &serde_json::Value) -> Shape {
    shape_from_json(&value.to_string()).unwrap_or_else(|error| panic!("{error}: {value}"))
}

/// Whether a count is a published number of billions: within 1.5 %, or the same when rounded to
/// the digits that this was printed with.
fn agrees(count: u64, published: f64) -> bool {
    let billions = count as f64 / 1e9;
    let scale = 10f64.powi(printed_digits(published));
    let rounded = (billions * scale).round() == (published * scale).round();
    rounded || (billions / published - 1.0).abs() <= 0.015
}

/// Digits behind the point.
fn printed_digits(published: f64) -> i32 {
    let text = published.to_string();
    text.split_once('.')
        .map_or(0, |(_, after)| after.len() as i32)
}

#[test]
fn presets_have_the_published_number_of_parameters() {
    assert_eq!(preset::all().len(), 100);
    for preset in preset::all() {
        let total = preset.shape.parameters().total();
        if let Some(published) = preset.total_b {
            assert!(
                agrees(total, published),
                "{}: {total}, published {published} B",
                preset.name
            );
        }
    }
}

/// Numbers of elements in published checkpoints, to the last.
#[test]
fn presets_have_as_many_numbers_as_their_checkpoints() {
    for (name, elements) in [
        ("deepseek-v2-lite", 15_706_484_224),
        ("deepseek-v2", 235_741_434_880),
        ("deepseek-v3", 671_026_419_200),
        ("deepseek-r1-distill-qwen-1.5b", 1_777_088_000),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-72b", 72_706_203_648),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("qwen3-235b-a22b", 235_093_634_560),
        ("mistral-7b", 7_241_732_096),
        ("mixtral-8x7b", 46_702_792_704),
        ("mixtral-8x22b", 140_620_634_112),
        ("kimi-k2", 1_026_408_232_448),
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("gpt-oss-20b", 20_914_757_184),
        ("gpt-oss-120b", 116_829_156_672),
        ("olmo-2-7b", 7_298_617_344),
        ("olmoe-1b-7b", 6_919_161_856),
        ("mpt-7b", 6_649_286_656),
        ("falcon-40b", 41_303_293_952),
        ("bloom-176b", 176_247_271_424),
        ("starcoder-15.5b", 15_517_456_384),
        ("smollm3-3b", 3_075_098_624),
        ("phi-3.5-mini", 3_821_079_552),
        ("minimax-m1", 456_089_655_296),
    ] {
        assert_eq!(named(name).shape.parameters().total(), elements, "{name}");
    }
}

/// Which embeddings a published number of active parameters leaves out.
#[derive(Clone, Copy)]
enum LeftOut {
    Neither,
    Input,
    Both,
}

/// Active counts are published cut off (37.55 as 37) as often as rounded.
#[test]
fn mixtures_have_the_published_number_of_active_parameters() {
    use LeftOut::{Both, Input, Neither};
    let conventions = [
        ("deepseek-v2-lite", Input),
        ("deepseek-v2", Neither),
        ("deepseek-v3", Neither),
        ("deepseek-v3-no-mtp", Neither),
        ("llama-4-scout", Neither),
        ("llama-4-maverick", Neither),
        ("qwen3-30b-a3b", Neither),
        ("qwen3-235b-a22b", Neither),
        ("mixtral-8x7b", Neither),
        ("mixtral-8x22b", Neither),
        ("moonlight-16b-a3b", Neither),
        ("kimi-k2", Neither),
        ("gpt-oss-20b", Input),
        ("gpt-oss-120b", Input),
        ("olmoe-1b-7b", Neither),
        ("pangu-ultra-moe-718b", Input),
        ("minimax-m1", Both),
        ("glm-4.5", Both),
    ];
    for preset in preset::all() {
        let Some(published) = preset.active_b else {
            continue;
        };
        // What is published for V3.2 is V3's number, from before the indexer.
        if preset.name == "deepseek-v3.2" {
            continue;
        }
        let of = conventions.iter().find(|(name, _)| *name == preset.name);
        let (_, left_out) = of.unwrap_or_else(|| panic!("no convention for {}", preset.name));
        let parts = preset.shape.active_parameters();
        let active = match left_out {
            Neither => parts.total(),
            Input => parts.total() - parts.embedding,
            Both => parts.total() - parts.embedding - parts.head,
        };
        let scale = 10f64.powi(printed_digits(published));
        let cut_off = (active as f64 / 1e9 * scale).floor() == (published * scale).round();
        assert!(
            cut_off || agrees(active, published),
            "{}: {active}, published {published} B",
            preset.name
        );
    }
}

fn printed(value: f64, digits: usize) -> String {
    format!("{value:.digits$}")
}

/// What arXiv 2412.19437 and 2505.09343 print of DeepSeek-V3, or what follows from it.
#[test]
fn deepseek_v3_to_the_printed_digits() {
    let v3 = &named("deepseek-v3").shape;
    let billions = |count: u64| printed(count as f64 / 1e9, 3);
    let parts = v3.parameters();
    assert_eq!(billions(parts.total()), "671.026");
    assert_eq!(parts.multi_token_prediction, 11_610_068_224);
    let active = v3.active_parameters();
    assert_eq!(billions(active.total()), "37.552");
    assert_eq!(billions(active.total() - active.embedding), "36.626");

    let of = |layer: u64, part: Part| -> f64 {
        let products = v3.layer(layer).products(v3.hidden_size);
        let products = products.iter().filter(|product| product.part == part);
        products.map(|p| p.inputs * p.outputs).sum::<u64>() as f64 / 1e6
    };
    assert_eq!(printed(of(0, Part::Attention), 3), "187.105");
    assert_eq!(printed(of(0, Part::DenseFeedForward), 2), "396.36");
    assert_eq!(printed(of(3, Part::RoutedExperts), 2), "44.04");
    assert_eq!(of(2, Part::RoutedExperts), 0.0);

    let flops = |causal, mtp| printed(v3.training_flops(4096, causal, mtp).0 / 1e9, 2);
    assert_eq!(flops(true, false), "250.46");
    assert_eq!(flops(false, false), "281.15");
    assert_eq!(flops(true, true), "260.65");
}

/// Bytes of cache per token in bf16: arXiv 2505.09343, Table 1.
#[test]
fn caches_of_the_published_table() {
    for (name, bytes) in [
        ("deepseek-v3", 70_272.0),
        ("qwen2.5-72b", 327_680.0),
        ("llama-3.1-405b", 516_096.0),
    ] {
        let found = named(name).shape.cache_bytes_per_token(CacheWidth(2.0));
        assert_eq!(found.0, bytes, "{name}");
    }
}

/// The log of nanochat's d24 run prints 4.330784131228946e19 operations over 16,704 steps of
/// 524,288 tokens; it counts windows whole, and 27,648 operations per token are gates of value
/// embeddings, which are no field of a configuration.
#[test]
fn nanochat_counts_what_its_log_prints() {
    let shape = &named("nanochat-d24").shape;
    let flops = shape.training_flops(2048, false, false).0;
    let logged: f64 = 4.330_784_131_228_946e19 / (16_704.0 * 524_288.0);
    assert_eq!(flops, 4_945_084_416.0);
    assert_eq!(flops + 27_648.0, logged.round());
    // Its norms have no weights, and its feed-forward halves no gate.
    let parts = shape.parameters();
    assert_eq!(parts.norms_and_biases, 0);
    assert_eq!(parts.dense_feed_forward, 24 * 2 * 1536 * 6144);
}

/// Spans of the layers of a preset, one letter each: full, window, chunk, state.
fn spans(shape: &Shape) -> String {
    let letter = |layer: u64| match &shape.layer(layer).attention {
        plan::shape::Attention::Mla(_) => 'm',
        plan::shape::Attention::Grouped(grouped) => match grouped.span {
            Span::Full => 'f',
            Span::Window(_) => 'w',
            Span::Chunk(_) => 'c',
            Span::State => 's',
        },
    };
    (0..shape.num_layers()).map(letter).collect()
}

#[test]
fn layers_attend_as_their_family_does() {
    for (name, pattern, times) in [
        ("llama-3-8b", "f", 32),
        ("mistral-7b", "w", 32),
        ("qwen2.5-7b", "f", 28),
        ("gpt-oss-120b", "wf", 18),
        ("olmo-3-7b", "wwwf", 8),
        ("llama-4-scout", "cccf", 12),
        ("minimax-m1", "sssssssf", 10),
    ] {
        assert_eq!(spans(&named(name).shape), pattern.repeat(times), "{name}");
    }
    // Where the lists are absent, the families' rules say the same.
    let oss = json!({"model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880,
        "intermediate_size": 2880, "num_hidden_layers": 36, "num_attention_heads": 64,
        "num_key_value_heads": 8, "num_local_experts": 128, "num_experts_per_tok": 4,
        "max_position_embeddings": 131072});
    assert_eq!(shape(&oss), named("gpt-oss-120b").shape);
    let olmo = json!({"model_type": "olmo3", "vocab_size": 100278, "hidden_size": 4096,
        "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "max_position_embeddings": 65536});
    assert_eq!(shape(&olmo), named("olmo-3-7b").shape);
    let maverick = &named("llama-4-maverick").shape;
    let routed = |i: u64| maverick.layer(i).feed_forward.experts.is_some();
    assert!((0..48).all(|i| routed(i) == (i % 2 == 1)));
}

/// A window of W keys at length S: W - W (W - 1) / 2S keys in the mean; a chunk of C: (C + 1) / 2.
#[test]
fn mean_keys_by_summing_over_queries() {
    for (name, layer) in [
        ("mistral-7b", 0),
        ("llama-4-scout", 0),
        ("deepseek-v3.2", 5),
    ] {
        let attention = &named(name).shape.layer(layer).attention;
        for seq_len in [1u64, 1000, 8192, 16384] {
            let met = |position: u64| match name {
                "mistral-7b" => position.min(4096),
                "llama-4-scout" => (position - 1) % 8192 + 1,
                _ => position.min(2048),
            };
            let sum: u64 = (1..=seq_len).map(met).sum();
            let mean = sum as f64 / seq_len as f64;
            let found = attention.mean_keys(seq_len as f64, true);
            assert!(
                (found - mean).abs() < 1e-9 * mean,
                "{name} {seq_len}: {found}"
            );
        }
    }
}

/// Layers of 13 h^2 numbers, of which 12 h^2 multiply tokens.
#[test]
fn projected_positions_cost_memory_and_no_time_per_token() {
    let gopher = &named("gopher-280b").shape;
    let (h, layers) = (16_384u64, 80);
    let parts = gopher.parameters();
    assert_eq!(
        parts.attention + parts.dense_feed_forward,
        layers * 13 * h * h
    );
    assert_eq!(gopher.active_parameters(), parts);
    let forward = gopher.matmul_flops(false).0;
    assert_eq!(forward, 2.0 * (layers * 12 * h * h + 32_000 * h) as f64);
    // Scores twice and values once.
    let core = gopher.core_flops(2047, true, false).0;
    assert_eq!(core, 6.0 * (layers * h) as f64 * 1024.0);
}

#[test]
fn presets_are_found_by_any_spelling() {
    for (spelling, name) in [
        ("DeepSeek-V3", "deepseek-v3"),
        ("deepseek_r1", "deepseek-v3"),
        ("Llama 3.1 405B", "llama-3.1-405b"),
        ("QWEN2.5 72b", "qwen2.5-72b"),
    ] {
        assert_eq!(named(spelling).name, name);
    }
    let mut names: Vec<String> = Vec::new();
    for preset in preset::all() {
        assert!(!preset.title.is_empty() && !preset.source.is_empty());
        assert_eq!(preset.published.len(), "2024-12".len(), "{}", preset.name);
        for name in preset.names() {
            // Each name must lead to its own preset, so no two may be the same.
            assert_eq!(named(name).name, preset.name);
            names.push(name.to_string());
        }
    }
    assert_eq!(names.len(), 165);
    let error = preset::find("deepseek-v33").unwrap_err().to_string();
    assert!(error.contains("deepseek-v3"), "{error}");
    assert!(preset::find("").is_err());
}
