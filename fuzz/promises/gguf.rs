//! What is promised of any bytes taken for a GGUF file.

use std::path::Path;

use model::gguf::{Gguf, GgufTokenizer, HfTensors, config_json};
use model::{Config, Error};

/// Larger tensors are not read: a file of a few kilobytes can name many experts.
const MOST_ELEMENTS: usize = 1 << 16;
const MOST_READ: usize = 200;

/// The file is refused in few words, or all that it says can be asked for: its configuration, its
/// tokenizer, its tensors under their Hugging Face names, and their elements.
pub fn check(bytes: &[u8]) -> Result<(), Error> {
    let result = use_up(bytes);
    if let Err(error) = &result {
        let text = error.to_string();
        assert!(text.chars().count() < 2000, "a message of {text}");
        assert!(!text.contains(char::is_control), "{text:?}");
        // The configuration that it was converted to is checked without a file.
        let known = ["bad.gguf: ", "model configuration: "];
        assert!(known.iter().any(|start| text.starts_with(start)), "{text}");
    }
    result
}

fn use_up(bytes: &[u8]) -> Result<(), Error> {
    let gguf = Gguf::from_bytes(bytes.to_vec(), Path::new("bad.gguf"))?;
    let stored: u64 = gguf.tensors.iter().map(|tensor| tensor.bytes).sum();
    assert!(
        stored <= bytes.len() as u64,
        "{stored} bytes of tensors in {}",
        bytes.len()
    );
    let config = config_json(&gguf);
    let tokenizer = GgufTokenizer::read(&gguf);
    let tensors = HfTensors::new(&gguf)?;
    for (name, tensor) in tensors.tensors.iter().take(MOST_READ) {
        let elements = tensor.shape.iter().product();
        // No type takes less than a bit for an element.
        assert!(elements <= 8 * bytes.len(), "{name}: {:?}", tensor.shape);
        if elements <= MOST_ELEMENTS && tensor.kind.is_read() {
            tensors.read_f32(name, &mut vec![0.0; elements])?;
        }
    }
    tokenizer?;
    Config::from_json(&config?).map(|_| ())
}
