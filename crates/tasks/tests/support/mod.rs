//! Randomness and hostile texts for the tests of this crate.

use tasks::{Problem, Task, vocabulary};

/// A linear congruential generator (Knuth's MMIX constants); the high bits are good enough here.
pub fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    println!("seed {seed}");
    let mut state = seed;
    move |n| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    }
}

/// Nothing here may panic, and nothing is right. The verdict is returned for more questions.
pub fn survives_hostile_texts(task: &dyn Task, problem: &Problem) {
    let long = [
        "1 ",
        "x ",
        "( ",
        "</think> ",
        "<eos> ",
        "~ try ; ",
        "9",
        "é ",
    ];
    let long = long.iter().map(|word| word.repeat(100_000));
    let short = [
        "",
        " ",
        "</think>",
        "</think> <eos>",
        "<eos>",
        "<eos> </think>",
        "+ - * /",
        "</think> + - * / <eos>",
        "</think> 1 / 0 0 <eos>",
        "</think> 1 / 0 <eos>",
        "</think> ( 1 / ( 2 - 2 ) ) <eos>",
        "</think> 99999999999999999999 <eos>",
        "</think> 4294967295 * 4294967295 * 4294967295 * 4294967295 * 4294967295 <eos>",
        "</think> 4294967295 * 4294967295 1 1 + 1 2 <eos>",
        "</think> ) ( <eos>",
        "</think> \u{0661} + \u{ff11} <eos>",
        "</think> 💥 <eos>",
        "</think> 1\u{0}2 <eos>",
        "20 4 16",
        "20 4 ? ~ x",
        "; ; = =",
        "; 4 =",
        "69 - ",
        "- 69 -",
        "69 - x 3",
        "5 * ~ 3",
        "7 * 6 + 0 = 4",
        ": : ;",
        "\u{202e}<think></think></think>",
    ];
    let short = short.iter().map(|text| text.to_string());
    let wrapped = long
        .clone()
        .map(|text| format!("{text}</think> {text}<eos>"));
    for text in short.chain(long).chain(wrapped) {
        let verdict = task.verify(problem, &text);
        assert!(
            !verdict.accurate,
            "{:?}",
            text.chars().take(80).collect::<String>()
        );
        assert_ne!(verdict.reason, "right");
        assert!(task.explain(problem, &text).len() < 200_000);
    }
}

/// Random words of the vocabulary, biased to those that mean something.
pub fn survives_random_words(task: &dyn Task, problem: &Problem, draw: &mut tasks::Draw) {
    let words = vocabulary();
    for _ in 0..5_000 {
        let length = draw(60);
        let text: Vec<&str> = (0..length)
            .map(|_| {
                let id = if draw(2) == 0 {
                    1_000 + draw(20)
                } else {
                    draw(100)
                };
                words[id as usize].as_str()
            })
            .collect();
        let text = text.join(" ");
        task.verify(problem, &text);
        task.explain(problem, &text);
    }
}

/// Every text of a style is right, short enough, and made of words of the vocabulary.
pub fn texts_are_right(task: &dyn Task, style: tasks::TraceStyle, least: usize, seed: u64) {
    let words: std::collections::HashSet<String> = vocabulary().into_iter().collect();
    let mut draw = random(seed);
    let mut written = 0;
    for _ in 0..10_000 {
        let problem = task.problem(&mut draw);
        let prompt = task.prompt(&problem);
        assert!(
            prompt.split(' ').all(|word| words.contains(word)),
            "{prompt}"
        );
        let Some(text) = task.trace(&problem, style, &mut draw) else {
            continue;
        };
        let verdict = task.verify(&problem, &text);
        assert!(
            verdict.accurate && verdict.well_formed,
            "{prompt} {text}: {}",
            verdict.reason
        );
        assert_eq!(verdict.reason, "right");
        assert!(
            text.split(' ').count() <= task.max_completion_tokens(),
            "{prompt} {text}"
        );
        assert!(
            text.split(' ').all(|word| words.contains(word)),
            "{prompt} {text}"
        );
        let said = task.explain(&problem, &text);
        assert!(
            !said.contains('?') && !said.contains("(wrong)"),
            "{text}\n{said}"
        );
        written += 1;
    }
    assert!(
        written >= least,
        "{}: {written} texts of 10,000",
        task.name()
    );
}

/// The examples in a module's documentation: what stands between "```text" and "```", the question
/// and the completion.
pub fn documented_examples(source: &str) -> Vec<(String, String)> {
    let doc: Vec<&str> = source
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .collect();
    let examples = doc.join("\n");
    let examples = examples
        .split("```text")
        .skip(1)
        .filter_map(|rest| rest.split("```").next());
    let one_blank = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    examples
        .filter_map(|example| example.split_once("<think>"))
        .map(|(question, completion)| (one_blank(question), one_blank(completion)))
        .collect()
}

/// The training and the held-out problems drawn have nothing in common, and the two methods and
/// `is_held_out` agree.
pub fn split_is_kept(task: &dyn Task, seed: u64) {
    let mut draw = random(seed);
    let mut train = std::collections::HashSet::new();
    let mut held_out = std::collections::HashSet::new();
    for _ in 0..3_000 {
        train.insert(task.training_problem(&mut draw));
        held_out.insert(task.held_out_problem(&mut draw));
    }
    assert!(train.is_disjoint(&held_out));
    assert!(train.iter().all(|problem| !task.is_held_out(problem)));
    assert!(held_out.iter().all(|problem| task.is_held_out(problem)));
    let share = (0..20_000)
        .filter(|_| {
            let problem = task.problem(&mut draw);
            task.is_held_out(&problem)
        })
        .count();
    assert!(
        (1_500..2_500).contains(&share),
        "{}: {share} of 20,000 held out",
        task.name()
    );
}
