//! What is promised of any bytes taken for a safetensors file.

use std::path::Path;

use model::{Error, check_safetensors};

/// The header is accepted or refused in few words. Of an accepted one, the ranges cover the file
/// to its last byte, and no name comes twice.
pub fn check(bytes: &[u8]) -> Result<(), Error> {
    let tensors = match check_safetensors(bytes, Path::new("bad.safetensors")) {
        Ok(tensors) => tensors,
        Err(error) => {
            let text = error.to_string();
            assert!(text.starts_with("bad.safetensors: "), "{text}");
            assert!(text.chars().count() < 2000, "a message of {text}");
            assert!(!text.contains(char::is_control), "{text:?}");
            return Err(error);
        }
    };
    let header = bytes
        .first_chunk()
        .map(|length| u64::from_le_bytes(*length));
    let data: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
    assert_eq!(
        header.map(|header| 8 + header + data),
        Some(bytes.len() as u64)
    );
    for tensor in &tensors {
        let elements: u128 = tensor.shape.iter().map(|&dim| dim as u128).product();
        assert!(elements <= 2 * u128::from(tensor.bytes), "{tensor:?}");
    }
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    assert!(
        names.is_sorted_by(|a, b| a < b),
        "a name comes twice: {names:?}"
    );
    Ok(())
}
