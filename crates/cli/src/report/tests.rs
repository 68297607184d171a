use super::*;

fn evaluation(accuracy: f64, text: &str) -> EvalResult {
    EvalResult {
        problems: 1_000,
        temperature: 1.0,
        accuracy,
        ci95: [accuracy - 0.031, accuracy + 0.029],
        well_formed: 0.987,
        mean_length: 23.4,
        max_length: 48,
        clipped_ratio: 0.0,
        num_tokens: 28_400,
        transcripts: vec![Sample {
            step: 0,
            prompt: "69 64 4 20 <think>".to_string(),
            completion: text.to_string(),
            explained: text.to_string(),
            reason: "the result is not the target".to_string(),
            accuracy: 0.0,
            format: 1.0,
            reward: 0.1,
            advantage: 0.0,
            length: 3,
        }],
    }
}

fn stage(name: &str, accuracy: f64, text: &str) -> Stage {
    Stage {
        name: name.to_string(),
        sampled: evaluation(accuracy, text),
        greedy: evaluation(accuracy + 0.05, text),
    }
}

fn report() -> Report {
    Report {
        command: "bruchteil demo --size small --seed 7".to_string(),
        seed: 7,
        task: "countdown3".to_string(),
        stages: [
            stage("random", 0.041, ""),
            stage(
                "cold start",
                0.312,
                "<script>alert('x')</script> & \"more\"",
            ),
            stage("after RL", 0.743, "69 - 64 = 5"),
        ],
        sft_loss: vec![[0.0, 6.9], [100.0, 0.75]],
        reward: vec![[0.0, 0.31], [1.0, 0.44]],
        accuracy: vec![[0.0, 0.21], [1.0, 0.39]],
        response_length: vec![[0.0, 11.5], [1.0, 22.25]],
        compute: Compute {
            parameters_total: 1_234_567,
            parameters_active: 765_432,
            sft_tokens: 4_194_304,
            rollout_tokens: 987_654,
            trained_rollout_tokens: 876_543,
            train_flops: 1.75e13,
        },
        cold_start: "60 % of the last traces were blurts.".to_string(),
        control: "The control reached 71.1 %.".to_string(),
        max_abs_logp_diff: 0.0,
        weights_blake3: "c0ffee".to_string(),
        timing: Timing {
            machine: "2 threads, avx512bf16".to_string(),
            stages: vec![("cold start".to_string(), 120.5), ("RL".to_string(), 90.25)],
            seconds: 215.52,
        },
    }
}

#[test]
fn the_numbers_given_are_in_the_page() {
    let html = report().html();
    for expected in [
        "1.23 million parameters",
        "0.77 million active",
        "4.1 %",
        "31.2 %",
        "74.3 %",
        "71.2 to 77.2 %",
        "+43.1 points",
        "do not overlap",
        "23.4 to 23.4 tokens",
        "1234567",
        "765432",
        "4194304",
        "987654",
        "876543",
        "1.750e13",
        "60 % of the last traces were blurts.",
        "The control reached 71.1 %.",
        "over all steps was 0.",
        "c0ffee",
        "bruchteil demo --size small --seed 7",
        "120.5 s",
        "Accuracy of each RL step's rollouts",
        "215.5 s",
    ] {
        assert!(html.contains(expected), "{expected} is not in the page");
    }
    assert_eq!(html.matches("<svg").count(), 5);
}

#[test]
fn what_a_model_wrote_is_text_and_never_markup() {
    let html = report().html();
    assert!(!html.contains("<script"));
    assert!(
        html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;more&quot;")
    );
    assert!(html.contains("69 64 4 20 &lt;think&gt;"));
}

/// Browsers fetch what is named by these; a report must need nothing but itself.
#[test]
fn the_page_asks_for_nothing_from_elsewhere() {
    let html = report().html();
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import"] {
        assert!(!html.contains(outside), "{outside}");
    }
}

#[test]
fn only_the_last_section_knows_the_time() {
    let (mut fast, mut slow) = (report(), report());
    fast.timing.stages[0].1 = 1.0;
    slow.timing = Timing {
        machine: "another".to_string(),
        stages: vec![("all".to_string(), 9e9)],
        seconds: 9e9,
    };
    let (fast, slow) = (fast.html(), slow.html());
    let before = |html: &str| {
        let (before, _) = html
            .split_once("<h2>Time on this machine")
            .expect("the section");
        before.to_string()
    };
    assert_eq!(before(&fast), before(&slow));
}

#[test]
fn every_element_is_closed() {
    let html = report().html();
    let (mut open, mut rest) = (Vec::new(), html.as_str());
    while let Some((_, after)) = rest.split_once('<') {
        let (tag, left) = after.split_once('>').expect("a tag ends");
        rest = left;
        let name = tag.split_whitespace().next().unwrap_or_default();
        match name.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop(), Some(closed.to_string()), "in <{tag}>"),
            None if tag.ends_with('/') || tag.starts_with('!') => {}
            None if ["meta", "br"].contains(&name) => {}
            None => open.push(name.to_string()),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}
