//! Serving, against published numbers, brute force and identities.

use model::Config;
use plan::chip::{self, Chip};
use plan::error::Error;
use plan::executed;
use plan::interval::Interval;
use plan::job::Precision;
use plan::quantity::{BytesPerSecond, DollarsPerChipSecond, FlopsPerSecond};
use plan::serving::{
    CONTEXT, Machine, PROMPT, RATE_SPREAD, Service, all_to_all, deepseek_day, distinct_experts,
    exchange_bound, here, published,
};
use plan::shape::{CacheWidth, Shape};

/// huggingface.co/deepseek-ai/DeepSeek-V3 config.json.
const V3: &str = r#"{"model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168,
"intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
"num_attention_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1,
"num_experts_per_tok": 8, "first_k_dense_replace": 3, "n_group": 8, "topk_group": 4,
"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
"v_head_dim": 128, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1,
"eos_token_id": 1}"#;

/// huggingface.co/meta-llama/Llama-3.1-8B config.json.
const LLAMA: &str = r#"{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
"intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
"num_key_value_heads": 8, "max_position_embeddings": 131072, "rope_theta": 500000.0,
"rms_norm_eps": 1e-5, "tie_word_embeddings": false, "eos_token_id": 128001}"#;

fn config(json: &str) -> Config {
    Config::from_json(json).expect("a published configuration")
}

fn shape(json: &str) -> Shape {
    Shape::from(&config(json))
}

fn chip(key: &str) -> &'static Chip {
    chip::find(key).expect("a chip of the catalogue")
}

fn close(value: f64, published: f64, tolerance: f64) {
    let error = (value / published - 1.0).abs();
    assert!(error <= tolerance, "{value} is not {published}: {error}");
}

#[test]
fn a_day_of_deepseek_closes() {
    let day = deepseek_day();
    let [prefill, decode] = day.nodes_at(day.rates);
    // To the digits of the derivation, and to the published mean of 226.75 nodes.
    assert_eq!(format!("{prefill:.2} {decode:.2}"), "95.48 131.38");
    assert_eq!(format!("{:.2}", prefill + decode), "226.86");
    close(prefill + decode, 226.75, 0.0006);
    assert_eq!(format!("{:.0}", day.rent(day.nodes).0), "87072");
    close(day.revenue().0, 562_027.0, 0.0002);
    assert_eq!(format!("{:.3}", day.hit_share()), "0.562", "342 of 608");
    // "545 %", of the published revenue; of that from rounded counts it is 545.6.
    close(day.margin(), 5.45, 0.002);
}

#[test]
fn the_bound_of_decoding_is_the_published_one() {
    // arXiv 2505.09343, section 2.3.2: 32 tokens, 9 experts, a hidden size of "7K".
    for (link, pair, token) in [(50e9, 120.96e-6, 14.76e-3), (900e9, 6.72e-6, 0.82e-3)] {
        let found = all_to_all(32.0, 9.0, 7000.0, BytesPerSecond(link));
        assert!((found.0 - pair).abs() < 1e-12, "{found:?}");
        let bound = exchange_bound(found, 61);
        assert!((bound.0 - token).abs() < 0.005e-3, "{bound:?}");
        if link == 50e9 {
            assert_eq!((1.0 / bound.0) as u64, 67, "tokens/s");
        }
    }
}

#[test]
fn the_cache_of_v3_is_the_published_one() {
    let bytes = shape(V3).cache_bytes_per_token(CacheWidth(2.0));
    assert_eq!(bytes.0, 70_272.0);
    // The mean prompt and answer that belong to the mean context.
    let day = deepseek_day();
    let context = PROMPT as f64 * (1.0 + day.output / day.input / 2.0);
    assert!((context - CONTEXT as f64).abs() < 1.0, "{context}");
}

#[test]
fn expected_experts_are_those_of_all_routings() {
    // Every choice of 2 of 5 experts by 3 tokens, each as likely.
    let pairs: Vec<u32> = (0..32u32).filter(|set| set.count_ones() == 2).collect();
    let mut met = 0;
    for a in &pairs {
        for b in &pairs {
            met += pairs.iter().map(|c| (a | b | c).count_ones()).sum::<u32>();
        }
    }
    let mean = f64::from(met) / (pairs.len() as f64).powi(3);
    assert!((distinct_experts(5, 2, 3.0) - mean).abs() < 1e-12);
    assert_eq!(distinct_experts(256, 8, 1.0), 8.0);
}

/// What a roofline with training's shares of peak is worth: no published rate is missed by a factor
/// of two, and the bounds of a prediction hold them all.
#[test]
fn published_services_are_met_within_a_factor_of_two() {
    let rows = published(&shape(V3)).expect("published chips and layouts");
    assert_eq!(rows.len(), 8);
    for row in &rows {
        let interval = row.predicted;
        println!(
            "{}: {} {}, predicted {:.0} ({:.0} to {:.0}), {:+.1} %",
            row.what,
            row.published,
            row.unit,
            interval.mid,
            interval.low,
            interval.high,
            100.0 * row.error
        );
        assert!(row.error.abs() < 1.0 && row.error > -0.5, "{}", row.what);
    }
    let ratios = rows.iter().map(|row| 1.0 / (1.0 + row.error));
    let [least, most] = ratios.fold([f64::INFINITY, 0.0_f64], |[low, high], ratio| {
        [low.min(ratio), high.max(ratio)]
    });
    // The bounds are those of these rows, rounded outwards.
    assert!((0.0..0.01).contains(&(least - RATE_SPREAD.low)), "{least}");
    assert!((0.0..0.01).contains(&(RATE_SPREAD.high - most)), "{most}");
}

#[test]
fn v3_on_h800_holds_what_deepseek_holds() {
    let v3 = shape(V3);
    let service = Service {
        decode_chips: Some(144),
        sequences: Some(88),
        ..Service::new(&v3, chip("h800"))
    };
    let decode = service.decode().expect("88 sequences fit");
    // planning.md, from 88 x 4,989 x 70,272.
    close(decode.memory_bytes_per_chip.cache.0, 30.85e9, 0.001);
    assert_eq!(decode.sequences_per_chip, 88.0);
    // All of a layer but its experts, and 2 of 256 of these: counted by hand in bytes.
    let attention = 61.0 * 187.105e6;
    let dense = 3.0 * 3.0 * 7168.0 * 18432.0;
    let experts = 58.0 * 3.0 * 3.0 * 7168.0 * 2048.0;
    let wide = 2.0 * (2.0 * 129_280.0 * 7168.0 + 58.0 * 256.0 * 7168.0);
    let weights = decode.memory_bytes_per_chip.weights.0;
    close(weights, attention + dense + experts + wide, 0.001);
}

#[test]
fn one_sequence_of_a_dense_model_is_bound_by_its_weights() {
    // The weights, and some time for kernels, elementwise work and the cache.
    let llama = shape(LLAMA);
    let service = Service {
        decode_chips: Some(1),
        precision: Precision::Bf16,
        sequences: Some(1),
        ..Service::new(&llama, chip("h100"))
    };
    let token = service.decode().expect("it fits").seconds_per_token;
    let parameters = llama.parameters();
    let weights = 2.0 * (parameters.total() - parameters.embedding) as f64;
    let least = weights / 3.35e12;
    assert!(token.low.0 > least, "{token:?}, {least}");
    assert!(token.mid.0 < 2.0 * least, "{token:?}, {least}");
}

#[test]
fn rates_follow_what_users_ask() {
    let v3 = shape(V3);
    let free = Service {
        decode_chips: Some(144),
        ..Service::new(&v3, chip("h800"))
    };
    let paced = |per_user| {
        let service = Service {
            per_user: Some(per_user),
            ..free
        };
        service.decode().expect("a batch that is fast enough")
    };
    let all = free.decode().expect("it fits");
    let (slow, fast) = (paced(25.0), paced(40.0));
    assert!(fast.tokens_per_second_per_user.mid.0 >= 40.0);
    assert!(fast.sequences_per_chip < slow.sequences_per_chip);
    assert!(fast.tokens_per_second_per_chip.mid < slow.tokens_per_second_per_chip.mid);
    assert!(slow.tokens_per_second_per_chip.mid <= all.tokens_per_second_per_chip.mid);
    // Guessing a second token helps a user who is alone.
    let alone = Service {
        sequences: Some(8),
        ..free
    };
    let guessed = Service {
        acceptance: Some(0.85),
        ..alone
    };
    let (plain, guessed) = (alone.decode().unwrap(), guessed.decode().unwrap());
    assert!(guessed.tokens_per_second_per_user.mid > plain.tokens_per_second_per_user.mid);
    // Hits are given for nothing but the cache's rows; twice the price is twice the cost.
    let cold = Service {
        cache_hits: 0.0,
        ..free
    };
    let (warm, cold) = (free.prefill().unwrap(), cold.prefill().unwrap());
    assert!(warm.tokens_per_second_per_chip.mid > cold.tokens_per_second_per_chip.mid);
}

#[test]
fn cost_is_rent_over_rate() {
    let v3 = shape(V3);
    let service = Service {
        hourly: Some(Interval::exact(DollarsPerChipSecond::from_hourly(2.0))),
        ..Service::new(&v3, chip("h800"))
    };
    let served = service.serve().expect("V3 fits 320 chips");
    let prefill = served.prefill.tokens_per_second_per_node;
    let cost = served.prefill.usd_per_million_tokens.expect("a price");
    // 8 chips for an hour are 16 dollars.
    close(cost.mid.0, 16.0 / 3600.0 / prefill.mid.0 * 1e6, 1e-9);
    close(cost.high.0, 16.0 / 3600.0 / prefill.low.0 * 1e6, 1e-9);
    assert!(served.origins.iter().all(|origin| !origin.value.is_empty()));
    assert!(
        served
            .origins
            .iter()
            .all(|origin| !origin.source.is_empty())
    );
    let free = Service {
        hourly: None,
        ..service
    };
    assert_eq!(free.decode().expect("fits").usd_per_million_tokens, None);
}

#[test]
fn a_search_is_no_worse_than_any_layout() {
    let v3 = shape(V3);
    let searched = Service::new(&v3, chip("h800"));
    let best = searched.decode().expect("fits");
    for chips in [16, 64, 144, 256] {
        let service = Service {
            decode_chips: Some(chips),
            ..searched
        };
        let fixed = service.decode().expect("fits");
        assert!(fixed.tokens_per_second_per_chip.mid <= best.tokens_per_second_per_chip.mid);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let v3 = shape(V3);
    let good = Service::new(&v3, chip("h800"));
    let asked = |service: Service, what: &str| match service.serve() {
        Err(Error::Asked { what: found, .. }) => assert_eq!(found, what),
        other => panic!("{what}: {other:?}"),
    };
    asked(Service { context: 0, ..good }, "context");
    asked(Service { prompt: 0, ..good }, "prompt");
    asked(Service { chips: 0, ..good }, "chips");
    for cache_hits in [1.0, 1.5, -0.1, f64::NAN] {
        asked(Service { cache_hits, ..good }, "cache hits");
    }
    let acceptance = Some(1.2);
    asked(Service { acceptance, ..good }, "acceptance");
    let per_user = Some(1e6);
    asked(Service { per_user, ..good }, "tokens per user");
    let sequences = Some(100_000);
    asked(Service { sequences, ..good }, "sequences");
    let prefill_chips = Some(400);
    asked(
        Service {
            prefill_chips,
            ..good
        },
        "chips of a copy",
    );
    let llama = shape(LLAMA);
    let unguessed = Service {
        acceptance: Some(0.8),
        ..Service::new(&llama, chip("h800"))
    };
    asked(unguessed, "acceptance");
    let unknown = Service::new(&v3, chip("h20-3e"));
    assert!(matches!(unknown.serve(), Err(Error::Chip(_))));
}

#[test]
fn a_model_too_large_for_a_node_is_told_what_it_needs() {
    let v3 = shape(V3);
    let node = Service {
        chips: 8,
        ..Service::new(&v3, chip("h800"))
    };
    let Err(Error::DoesNotFit(message)) = node.decode() else {
        panic!("671 GB do not fit 8 x 80 GB");
    };
    assert!(message.contains("GB too much"), "{message}");
    let words: Vec<&str> = message.split_whitespace().collect();
    let smallest: u64 = words.last().and_then(|n| n.parse().ok()).expect("a number");
    // What is named can hold it, and what comes before in whole nodes cannot.
    let given = |chips| Service {
        chips,
        ..Service::new(&v3, chip("h800"))
    };
    assert!(given(smallest).decode().is_ok(), "{message}");
    assert!(
        smallest > 8 && given(smallest - 8).decode().is_err(),
        "{message}"
    );
    // 671 GB do fit 8 x 141 GB: DeepSeek-V3 is served on one such node.
    let larger = Service {
        chips: 8,
        ..Service::new(&v3, chip("h200"))
    };
    assert!(larger.decode().is_ok());
}

#[test]
fn this_machine_is_bound_by_what_was_measured() {
    let config = config(LLAMA);
    let machine = Machine {
        bandwidth: BytesPerSecond(50e9),
        peak: FlopsPerSecond(1e12),
    };
    let found = here(&config, machine, Some(2.0), [16, 100, 512]).expect("a machine");
    // One token reads all weights but the table of embeddings: 7.5 billion of 2 bytes.
    let weights = 2.0 * 7.5046e9;
    close(found.weight_bytes.0, weights, 0.0005);
    close(found.decode_alone.high.0, 50e9 / weights, 0.01);
    // A batch reads them once; a prompt is arithmetic.
    assert!(found.decode_batch.high.0 > 10.0 * found.decode_alone.high.0);
    close(found.prefill.high.0, 1e12 / (2.0 * 7.5e9), 0.1);
    let panels = here(&config, machine, None, [1, 1, 1]).expect("a machine");
    let executed = executed::decode(&config, &[1]);
    assert_eq!(panels.weight_bytes.0, executed.weight_bytes as f64);
    assert!(here(&config, machine, None, [1, 0, 1]).is_err());
}
