//! Multiplication: its texts, verdicts and words, and the list of tasks.

mod support;

use support::random;
use tasks::{
    Multiplication, Problem, TASK_NAMES, Task, TraceStyle, VOCABULARY_SIZE, task_by_name,
    vocabulary,
};

fn problem(a: u32, b: u32) -> Problem {
    Problem {
        numbers: vec![a, b],
        target: a * b,
    }
}

fn working(task: &Multiplication, problem: &Problem) -> String {
    task.trace(problem, TraceStyle::Row, &mut |_| 0).unwrap()
}

#[test]
fn the_documented_example_is_what_is_written() {
    let examples = support::documented_examples(include_str!("../src/multiplication/mod.rs"));
    let task = Multiplication::default();
    let asked = problem(47, 36);
    let expected = (task.question(&asked), working(&task, &asked));
    assert_eq!(examples, [expected]);
}

/// Every statement of every working, read by itself, is true; the last result is the product.
#[test]
fn every_statement_is_true() {
    let number = |text: &str| text.replace(' ', "").parse::<u32>().unwrap();
    for (task, step) in [
        (Multiplication::new(2, 2), 1),
        (Multiplication::new(3, 3), 37),
    ] {
        let from = if step == 1 { 10 } else { 100 };
        for a in (from..from * 10).step_by(step) {
            for b in (from..from * 10).step_by(step) {
                let text = working(&task, &problem(a, b));
                let (thinking, answer) = text.split_once(" </think> ").unwrap();
                assert_eq!(number(answer.strip_suffix(" <eos>").unwrap()), a * b);
                let mut result = 0;
                for statement in thinking.split(" ; ") {
                    let (column, made) = match statement.split_once(" : ") {
                        Some((column, made)) => (column, Some(made)),
                        None => (statement, None),
                    };
                    let (left, right) = column.split_once(" = ").unwrap();
                    let words: Vec<&str> = left.split(' ').collect();
                    let [x, sign, y, "+", carry] = words[..] else {
                        panic!("{statement}")
                    };
                    let (x, y) = (number(x), number(y));
                    let value = if sign == "*" { x * y } else { x + y };
                    assert_eq!(value + number(carry), number(right), "{statement}");
                    result = made.map_or(result, number);
                }
                assert_eq!(result, a * b, "{text}");
            }
        }
    }
}

#[test]
fn every_text_is_right() {
    for (first, second) in [(1, 1), (2, 1), (1, 3), (2, 2), (3, 2), (3, 3)] {
        let task = Multiplication::new(first, second);
        support::texts_are_right(&task, TraceStyle::Row, 10_000, 61);
        support::texts_are_right(&task, TraceStyle::Blurt, 10_000, 62);
        assert_eq!(
            task.trace(&problem(1, 1), TraceStyle::DepthFirst, &mut |_| 0),
            None
        );
    }
}

#[test]
fn a_changed_digit_is_never_accurate() {
    let mut draw = random(63);
    let task = Multiplication::new(3, 3);
    for _ in 0..2_000 {
        let asked = task.problem(&mut draw);
        let text = task.trace(&asked, TraceStyle::Blurt, &mut draw).unwrap();
        let words: Vec<&str> = text.split(' ').collect();
        for place in 1..words.len() - 1 {
            let digit: u64 = words[place].parse().unwrap();
            let other = ((digit + 1 + draw(9)) % 10).to_string();
            let mut changed = words.clone();
            changed[place] = &other;
            assert!(!task.verify(&asked, &changed.join(" ")).accurate);
            changed.remove(place);
            assert!(!task.verify(&asked, &changed.join(" ")).accurate);
        }
    }
}

#[test]
fn verdicts_name_what_is_wrong() {
    let task = Multiplication::default();
    for (text, accurate, well_formed, reason) in [
        ("7 </think> 1 6 9 2 <eos>", true, true, "right"),
        ("</think> 1 6 9 2", true, false, "does not end with <eos>"),
        (
            "</think> </think> 1 6 9 2 <eos>",
            true,
            false,
            "more than one </think>",
        ),
        ("1 6 9 2 <eos>", false, false, "no answer after </think>"),
        (
            "</think> 1 6 9 3 <eos>",
            false,
            true,
            "the product is wrong",
        ),
        (
            "</think> 0 1 6 9 2 <eos>",
            false,
            false,
            "the answer has a leading zero",
        ),
        (
            "</think> 1 692 <eos>",
            false,
            false,
            "the answer has a word that is no digit",
        ),
        (
            "</think> 1 1 1 1 1 1 1 1 1 1 1 1 1 <eos>",
            false,
            false,
            "the answer is too long",
        ),
        ("</think> <eos>", false, false, "the answer is empty"),
    ] {
        let verdict = task.verify(&problem(47, 36), text);
        let told = (verdict.accurate, verdict.well_formed, verdict.reason);
        assert_eq!(told, (accurate, well_formed, reason), "{text}");
    }
}

#[test]
fn thinking_is_told_in_words() {
    let task = Multiplication::new(1, 1);
    let said = task.explain(&problem(7, 6), &working(&task, &problem(7, 6)));
    assert_eq!(
        said,
        "  7 * 6, carry 0: 42, write 2, carry 4\nThis makes 42.\nAnswer: 42"
    );
    let wrong = task.explain(&problem(7, 6), "7 * 6 + 0 = 4 3 ; 7 7 : 4 ~ </think> 43");
    assert!(
        wrong.starts_with("  7 * 6, carry 0: 43 (wrong), write 3, carry 4\n?\n"),
        "{wrong}"
    );
}

#[test]
fn split_is_kept() {
    support::split_is_kept(&Multiplication::new(3, 3), 71);
    let task = Multiplication::default();
    for (a, b) in (10..100).flat_map(|a| (10..100).map(move |b| (a, b))) {
        assert_eq!(
            task.is_held_out(&problem(a, b)),
            task.is_held_out(&problem(b, a))
        );
    }
}

#[test]
fn hostile_completions_never_panic() {
    let task = Multiplication::default();
    let asked = problem(47, 36);
    support::survives_hostile_texts(&task, &asked);
    support::survives_random_words(&task, &asked, &mut random(81));
}

#[test]
fn tasks_are_found_by_name() {
    for name in TASK_NAMES {
        assert_eq!(task_by_name(name).unwrap().name(), name);
    }
    let Err(error) = task_by_name("countdwon3") else {
        panic!("found a task that is not there")
    };
    assert_eq!(
        error.to_string(),
        "task \"countdwon3\" is unknown; known tasks: countdown3, countdown4, multiplication1x1, \
         multiplication2x1, multiplication2x2, multiplication3x3"
    );
}

#[test]
fn the_vocabulary_has_each_word_once_and_numbers_at_their_value() {
    let words = vocabulary();
    let different: std::collections::HashSet<&String> = words.iter().collect();
    assert_eq!((words.len(), different.len()), (1_024, VOCABULARY_SIZE));
    assert!((0..1_000).all(|n| words[n] == n.to_string()));
    assert_eq!(
        words[1_000..1_005],
        ["<pad>", "<eos>", "<unk>", "<think>", "</think>"]
    );
    assert!(
        words
            .iter()
            .all(|word| !word.is_empty() && !word.contains(char::is_whitespace))
    );
}
