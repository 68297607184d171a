//! Countdown against brute force, the published counts of its pilot, and hostile completions.

mod support;

use std::collections::BTreeSet;
use support::random;
use tasks::{Countdown, Problem, Task, TraceStyle, Verdict, task_by_name};

fn problem(numbers: &[u32], target: u32) -> Problem {
    Problem {
        numbers: numbers.to_vec(),
        target,
    }
}

fn row(task: &Countdown, problem: &Problem) -> Option<String> {
    task.trace(problem, TraceStyle::Row, &mut |_| {
        panic!("three numbers draw nothing")
    })
}

/// An expression in words, its value as a fraction, and whether every value in it is a positive
/// whole number. `None`: it divides by zero.
#[derive(Clone)]
struct Tree {
    text: String,
    value: Option<(i64, i64)>,
    whole: bool,
}

/// Every expression that uses all the numbers in this order, in every shape.
fn trees(numbers: &[u32]) -> Vec<Tree> {
    if let [only] = *numbers {
        return vec![Tree {
            text: only.to_string(),
            value: Some((i64::from(only), 1)),
            whole: true,
        }];
    }
    let mut all = Vec::new();
    for split in 1..numbers.len() {
        let (lefts, rights) = (trees(&numbers[..split]), trees(&numbers[split..]));
        for left in &lefts {
            for right in &rights {
                all.extend("+-*/".chars().map(|op| joined(left, op, right)));
            }
        }
    }
    all
}

fn joined(left: &Tree, op: char, right: &Tree) -> Tree {
    let text = format!("( {} {op} {} )", left.text, right.text);
    let value = left
        .value
        .zip(right.value)
        .and_then(|((a, b), (c, d))| match op {
            '+' => Some((a * d + c * b, b * d)),
            '-' => Some((a * d - c * b, b * d)),
            '*' => Some((a * c, b * d)),
            _ => (c != 0).then_some((a * d, b * c)),
        });
    let is_whole = value.is_some_and(|(n, d)| n % d == 0 && n / d > 0);
    Tree {
        text,
        value,
        whole: is_whole && left.whole && right.whole,
    }
}

fn permutations(numbers: &[u32]) -> BTreeSet<Vec<u32>> {
    if numbers.is_empty() {
        return BTreeSet::from([Vec::new()]);
    }
    let mut all = BTreeSet::new();
    for (i, &first) in numbers.iter().enumerate() {
        let others = [&numbers[..i], &numbers[i + 1..]].concat();
        all.extend(
            permutations(&others)
                .into_iter()
                .map(|rest| [&[first], &rest[..]].concat()),
        );
    }
    all
}

fn all_trees(numbers: &[u32]) -> Vec<Tree> {
    permutations(numbers)
        .iter()
        .flat_map(|order| trees(order))
        .collect()
}

/// All multisets of `count` numbers up to `max`, each largest first.
fn multisets(count: usize, max: u32) -> Vec<Vec<u32>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for first in 1..=max {
        let rests = multisets(count - 1, first);
        all.extend(rests.into_iter().map(|rest| [&[first], &rest[..]].concat()));
    }
    all
}

/// Targets, traces and verdicts against every expression tree.
fn agrees_with_brute_force(task: &Countdown, max: u32) {
    for numbers in multisets(task.count(), max) {
        let trees = all_trees(&numbers);
        let reached: BTreeSet<i64> = trees
            .iter()
            .filter(|tree| tree.whole)
            .filter_map(|tree| tree.value.map(|(n, d)| n / d))
            .filter(|value| (1..=100).contains(value))
            .collect();
        let targets: Vec<i64> = task.targets(&numbers).into_iter().map(i64::from).collect();
        assert_eq!(targets, Vec::from_iter(reached), "{numbers:?}");
        for target in 1..=100 {
            let reachable = task.targets(&numbers).contains(&target);
            // Numbers this small never need a value above 999.
            let attempts = task.row_attempts(&problem(&numbers, target));
            assert_eq!(attempts.is_some(), reachable, "{numbers:?} {target}");
        }
        for (tree, target) in trees.iter().zip((1..=30).cycle()) {
            let text = format!("</think> {} <eos>", tree.text);
            let verdict = task.verify(&problem(&numbers, target), &text);
            let right = tree.value.is_some_and(|(n, d)| n == i64::from(target) * d);
            assert_eq!(verdict.accurate, right, "{numbers:?} {target}: {text}");
            assert!(verdict.well_formed);
            if let Some((n, d)) = tree.value.filter(|&(n, d)| n % d == 0 && n / d > 0) {
                let own = problem(&numbers, u32::try_from(n / d).unwrap());
                assert!(task.verify(&own, &text).accurate, "{own:?}: {text}");
            }
        }
    }
}

#[test]
fn three_numbers_agree_with_brute_force() {
    agrees_with_brute_force(&Countdown::new(3, 12), 12);
}

#[test]
fn four_numbers_agree_with_brute_force() {
    agrees_with_brute_force(&Countdown::new(4, 5), 5);
}

#[test]
fn depth_first_finds_whatever_is_reachable() {
    let mut task = Countdown::new(3, 10);
    task.max_completion_tokens = 1_000;
    for numbers in multisets(3, 10) {
        for target in 1..=100 {
            let found = task.trace(
                &problem(&numbers, target),
                TraceStyle::DepthFirst,
                &mut |_| 0,
            );
            let reachable = task.targets(&numbers).contains(&target);
            assert_eq!(found.is_some(), reachable, "{numbers:?} {target}");
        }
    }
}

/// Table A of the pilot, counted there by other code.
#[test]
fn there_are_as_many_problems_as_the_pilot_counted() {
    let count = |max| {
        let sets = multisets(3, max);
        let task = Countdown::new(3, max);
        (
            sets.len(),
            sets.iter()
                .map(|set| task.targets(set).len())
                .sum::<usize>(),
        )
    };
    assert_eq!(count(10), (220, 2_915));
    assert_eq!(count(20), (1_540, 16_292));
    let (sets, problems) = count(50);
    assert_eq!(sets, 22_100);
    assert!(
        (138_000..144_000).contains(&problems),
        "sampled as 141,000, counted {problems}"
    );
    let (sets, problems) = count(99);
    assert_eq!(sets, 166_650);
    assert!(
        (635_000..665_000).contains(&problems),
        "sampled as 650,000, counted {problems}"
    );
}

#[test]
fn the_literal_traces_of_the_pilot_are_reproduced() {
    let task = Countdown::three();
    let first = problem(&[69, 64, 4], 20);
    assert_eq!(task.prompt(&first), "69 64 4 20 <think>");
    assert_eq!(
        row(&task, &first).as_deref(),
        Some("20 4 16 24 80 5 69 64 5 133 ~ ~ </think> 69 - 64 5 5 * 4 20 <eos>")
    );
    let second = problem(&[16, 7, 4], 48);
    assert_eq!(
        row(&task, &second).as_deref(),
        Some(
            "48 4 44 52 192 12 16 7 9 23 112 ~ x 48 7 41 55 336 ~ 16 4 12 20 64 4 x \
             48 16 32 64 768 3 7 4 3 11 28 ~ </think> 7 - 4 3 16 * 3 48 <eos>"
        )
    );
    assert_eq!(task.row_attempts(&first), Some(1));
    assert_eq!(task.row_attempts(&second), Some(3));
    let blurt = task.trace(&problem(&[96, 69, 9], 18), TraceStyle::Blurt, &mut |_| 0);
    assert_eq!(
        blurt.as_deref(),
        Some("</think> 96 - 69 27 27 - 9 18 <eos>")
    );
}

#[test]
fn the_documented_examples_are_what_is_written() {
    let examples = support::documented_examples(include_str!("../src/countdown/mod.rs"));
    let mut draw = random(3);
    let mut styles = Vec::new();
    for (question, completion) in &examples {
        let numbers: Vec<u32> = question
            .split(' ')
            .map(|word| word.parse().unwrap())
            .collect();
        let (&target, numbers) = numbers.split_last().unwrap();
        let mut task = Countdown::new(numbers.len(), 99);
        task.max_completion_tokens = 320;
        let problem = problem(numbers, target);
        assert_eq!(&task.question(&problem), question);
        let mut is_written = |style| {
            (0..20_000).any(|_| task.trace(&problem, style, &mut draw).as_ref() == Some(completion))
        };
        let style = [TraceStyle::Row, TraceStyle::DepthFirst]
            .into_iter()
            .find(|&s| is_written(s));
        styles.push((
            numbers.len(),
            style.unwrap_or_else(|| panic!("{question}: {completion}")),
        ));
    }
    let expected = [
        (3, TraceStyle::Row),
        (4, TraceStyle::Row),
        (3, TraceStyle::DepthFirst),
    ];
    assert_eq!(styles, expected);
}

/// The shares that must be written: the pilot leaves out 0.6 % at three numbers.
#[test]
fn every_text_is_right() {
    let three = Countdown::three();
    let four = Countdown::four();
    support::texts_are_right(&three, TraceStyle::Row, 9_850, 11);
    support::texts_are_right(&three, TraceStyle::Blurt, 9_850, 12);
    support::texts_are_right(&three, TraceStyle::DepthFirst, 5_000, 13);
    support::texts_are_right(&four, TraceStyle::Row, 9_000, 14);
    support::texts_are_right(&four, TraceStyle::Blurt, 9_000, 15);
    support::texts_are_right(&four, TraceStyle::DepthFirst, 5_000, 16);
}

/// The part of a four-number text after `=` is the three-number text of the question before it.
#[test]
fn four_numbers_work_as_three_do() {
    let (three, four) = (Countdown::three(), Countdown::four());
    let mut draw = random(21);
    for _ in 0..1_000 {
        let drawn = four.problem(&mut draw);
        let Some(text) = four.trace(&drawn, TraceStyle::Row, &mut draw) else {
            continue;
        };
        let thinking = text.split(" </think>").next().unwrap();
        assert!(thinking.split(" try ").count() <= four.first_step_tries);
        let last_try = thinking.split(" try ").last().unwrap();
        let (question, working) = last_try
            .split_once(" ; ")
            .unwrap()
            .1
            .split_once(" = ")
            .unwrap();
        let numbers: Vec<u32> = question
            .split(' ')
            .map(|word| word.parse().unwrap())
            .collect();
        let alone = row(&three, &problem(&numbers[..3], numbers[3])).unwrap();
        assert_eq!(alone.split(" </think>").next(), Some(working));
    }
}

#[test]
fn a_single_try_is_always_good_and_the_limit_of_words_is_kept() {
    let mut task = Countdown::four();
    let mut draw = random(22);
    task.first_step_tries = 1;
    task.max_completion_tokens = 62;
    for _ in 0..1_000 {
        let drawn = task.problem(&mut draw);
        let Some(text) = task.trace(&drawn, TraceStyle::Row, &mut draw) else {
            continue;
        };
        assert!(!text.contains("try"), "{text}");
        assert!(task.verify(&drawn, &text).accurate);
    }
    task.first_step_tries = 24;
    task.max_completion_tokens = 150;
    let texts = (0..1_000).filter_map(|_| {
        let drawn = task.problem(&mut draw);
        task.trace(&drawn, TraceStyle::Row, &mut draw)
    });
    let lengths: Vec<usize> = texts.map(|text| text.split(' ').count()).collect();
    assert!(lengths.len() > 800 && lengths.iter().all(|&length| length <= 150));
}

/// Any other number in any place of an answer's steps makes it wrong.
#[test]
fn a_changed_number_is_never_accurate() {
    let mut draw = random(31);
    for task in [Countdown::three(), Countdown::four()] {
        for _ in 0..2_000 {
            let drawn = task.problem(&mut draw);
            let Some(text) = task.trace(&drawn, TraceStyle::Blurt, &mut draw) else {
                continue;
            };
            let words: Vec<&str> = text.split(' ').collect();
            for place in 1..words.len() - 1 {
                let Ok(number) = words[place].parse::<u64>() else {
                    continue;
                };
                let other = ((number + 1 + draw(998)) % 1_000).to_string();
                let mut changed = words.clone();
                changed[place] = &other;
                let verdict = task.verify(&drawn, &changed.join(" "));
                assert!(!verdict.accurate, "{drawn:?} {}", changed.join(" "));
                assert!(verdict.well_formed);
                changed.remove(place);
                assert!(!task.verify(&drawn, &changed.join(" ")).accurate);
            }
        }
    }
}

#[test]
fn verdicts_name_what_is_wrong() {
    let task = Countdown::three();
    let asked = problem(&[69, 64, 4], 20);
    let judge = |text: &str| {
        let Verdict {
            accurate,
            well_formed,
            reason,
        } = task.verify(&asked, text);
        (accurate, well_formed, reason)
    };
    for right in [
        "</think> ( 69 - 64 ) * 4 <eos>",
        "4 x </think> 4*(69-64) <eos>",
    ] {
        assert_eq!(judge(right), (true, true, "right"));
    }
    let steps = "69 - 64 5 5 * 4 20";
    assert_eq!(
        judge(&format!("</think> {steps} <eos>\n")),
        (true, true, "right")
    );
    let two = format!("</think> 1 </think> {steps} <eos>");
    assert_eq!(judge(&two), (true, false, "more than one </think>"));
    assert_eq!(
        judge(&format!("</think> {steps}")),
        (true, false, "does not end with <eos>")
    );
    let after = format!("</think> {steps} <eos> 1");
    assert_eq!(judge(&after), (true, false, "does not end with <eos>"));
    assert_eq!(judge(steps), (false, false, "no answer after </think>"));
    for (answer, well_formed, reason) in [
        ("69 - 64 5", true, "not every number is used"),
        (
            "69 - 64 5 5 * 4 20 20 * 1 20",
            true,
            "uses a number that is not there",
        ),
        ("69 - 64 6 6 * 4 24", true, "a step's result is wrong"),
        (
            "69 + 64 133 133 + 4 137",
            true,
            "the result is not the target",
        ),
        ("64 - 69 5 5 * 4 20", true, "a step's result is wrong"),
        ("69 - 64 5 5 * 4", false, "a step is not complete"),
        (
            "69 64 - 5 5 * 4 20",
            false,
            "a step is not `number operation number result`",
        ),
        ("4 * 5", true, "not every number is used exactly once"),
        ("69 + 64 + 4", true, "the result is not the target"),
        ("69 / ( 64 - 64 )", true, "divides by zero"),
        ("( 69 - 64 * 4", false, "a parenthesis is not closed"),
        (
            "69 - 64 ) * 4",
            false,
            "the answer does not end where its expression ends",
        ),
        ("69 -", false, "an operand is missing"),
        ("~ 5", false, "the answer has a word that is no step"),
        ("", false, "the answer is empty"),
    ] {
        assert_eq!(
            judge(&format!("</think> {answer} <eos>")),
            (false, well_formed, reason)
        );
    }
}

#[test]
fn thinking_is_told_in_words() {
    let task = Countdown::three();
    let asked = problem(&[69, 64, 4], 20);
    let said = task.explain(&asked, &row(&task, &asked).unwrap());
    let expected = "With 4 last, to reach 20: 20 - 4 = 16; 20 + 4 = 24; 20 * 4 = 80; 20 / 4 = 5\n  \
                    69 and 64 make: 69 - 64 = 5; 69 + 64 = 133; 69 * 64 is above 999; \
                    69 / 64 is not whole\n  In both: 5\nAnswer: 69 - 64 = 5; 5 * 4 = 20";
    assert_eq!(said, expected);
    let wrong = task.explain(
        &asked,
        "20 4 17 ~ 80 <think> x </think> 69 - 64 4 4 * ( 20 <eos>",
    );
    assert!(wrong.contains("20 - 4 = 17 (wrong)"), "{wrong}");
    assert!(wrong.contains("20 + 4 is of no use (wrong)"), "{wrong}");
    assert!(wrong.contains("20 / 4 = ?"), "{wrong}");
    assert!(wrong.ends_with("Answer: 69 - 64 = 4 (wrong); ?"), "{wrong}");
}

#[test]
fn split_is_kept() {
    support::split_is_kept(&Countdown::three(), 41);
    support::split_is_kept(&Countdown::four(), 42);
    let task = Countdown::three();
    for numbers in multisets(3, 20) {
        let orders = permutations(&numbers);
        let sides: BTreeSet<bool> = orders
            .iter()
            .map(|order| task.is_held_out(&problem(order, 24)))
            .collect();
        assert_eq!(sides.len(), 1, "{numbers:?}");
    }
}

#[test]
fn hostile_completions_never_panic() {
    let mut draw = random(51);
    for (name, numbers) in [
        ("countdown3", &[69, 64, 4][..]),
        ("countdown4", &[99, 69, 64, 4]),
    ] {
        let task = task_by_name(name).unwrap();
        support::survives_hostile_texts(task.as_ref(), &problem(numbers, 20));
        support::survives_random_words(task.as_ref(), &problem(numbers, 20), &mut draw);
    }
}
