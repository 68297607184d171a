#![no_main]
//! A chat template renders, within the crate's limits of work and output, or says why not.

use text::{ChatTemplate, Message};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(source) = std::str::from_utf8(bytes) else {
        return;
    };
    let messages = [
        Message::new("system", "Be brief."),
        Message::new("user", "What is 6 * 7?"),
        Message::new("assistant", "<think>\n6 * 7 = 42\n</think>\n42"),
        Message::new("user", "And {{ 7 * 7 }}?"),
    ];
    let rendered = ChatTemplate::new(source)
        .and_then(|template| template.render(&messages, true, "<s>", "</s>"));
    if let Err(error) = rendered {
        assert!(error.to_string().len() < 4000, "an error of {error}");
    }
});
