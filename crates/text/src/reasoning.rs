//! Where thinking ends and the answer begins.

/// Splits a completion into its thinking and its answer, as DeepSeek-R1 writes them; both trimmed.
///
/// `primed`: the prompt ended inside `<think>`, so the completion starts with thinking. Otherwise
/// it thinks only if it starts with `<think>`. The first `</think>` ends the thinking; where there
/// is none, everything is thinking and the answer is empty.
pub fn split_reasoning(text: &str, primed: bool) -> (Option<&str>, &str) {
    let text = text.trim();
    let thinking = match text.strip_prefix("<think>") {
        Some(thinking) => thinking,
        None if primed => text,
        None => return (None, text),
    };
    let (thinking, answer) = thinking.split_once("</think>").unwrap_or((thinking, ""));
    (Some(thinking.trim()), answer.trim())
}

#[cfg(test)]
mod tests {
    use super::split_reasoning;

    #[test]
    fn splits_as_r1_does() {
        for (text, primed, expected) in [
            ("a b </think> c", true, (Some("a b"), "c")),
            ("<think>\na\n</think>\n\nc", false, (Some("a"), "c")),
            ("<think> a </think> c", true, (Some("a"), "c")),
            ("a b", true, (Some("a b"), "")),
            ("<think> a", false, (Some("a"), "")),
            ("c", false, (None, "c")),
            ("c </think> d", false, (None, "c </think> d")),
            ("</think> c", true, (Some(""), "c")),
            ("a </think> c </think> d", true, (Some("a"), "c </think> d")),
            ("", true, (Some(""), "")),
            ("", false, (None, "")),
        ] {
            assert_eq!(
                split_reasoning(text, primed),
                expected,
                "{text:?} primed {primed}"
            );
        }
    }
}
