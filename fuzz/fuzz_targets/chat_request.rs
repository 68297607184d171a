#![no_main]

#[path = "../promises/chat_request.rs"]
mod promise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = promise::check(bytes);
});
