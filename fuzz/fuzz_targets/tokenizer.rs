#![no_main]
//! A `tokenizer.json` that loads also encodes, with ids that it knows and in bounded time.

use text::Tokenizer;

/// Words, digits, accents, an emoji of several code points, blanks, a special token, code.
const SAMPLE: &str = "The ﬁrst 1234.5 naïve façades 👩‍👩‍👧 \t\n  <think>fn main() { x += 1; }</think>";

// The library that reads the file may panic: the crate turns that into an error. libFuzzer would
// end the process at the first panic, caught or not, so its hook is taken away; a panic that nobody
// catches cannot pass the target's C interface and still aborts.
libfuzzer_sys::fuzz_target!(
    init: std::panic::set_hook(Box::new(|_| {})),
    |bytes: &[u8]| {
        let Ok(json) = std::str::from_utf8(bytes) else {
            return;
        };
        match Tokenizer::from_json(json) {
            Err(error) => assert!(!error.to_string().is_empty()),
            Ok(tokenizer) => {
                let _ = tokenizer.encode(SAMPLE).map(|ids| tokenizer.decode(&ids, false));
            }
        }
    }
);
