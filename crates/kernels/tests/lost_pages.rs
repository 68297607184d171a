//! A mapped file that is shortened: a message and exit code 3, not a silent death.
#![cfg(unix)]

use kernels::{Bytes, MappedFile};
use std::fs::File;
use std::process::Command;

/// Names the file to the process that is to lose its pages.
const VARIABLE: &str = "BRUCHTEIL_TEST_LOST_PAGES";

#[test]
fn a_mapped_file_that_is_shortened_ends_the_process_with_a_message() {
    if let Ok(path) = std::env::var(VARIABLE) {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let bytes = Bytes::from(MappedFile::new(&file).unwrap());
        file.set_len(0).unwrap();
        let sum: u64 = bytes.as_slice().iter().map(|&byte| u64::from(byte)).sum();
        unreachable!("the sum of lost pages is {sum}");
    }
    let path = std::env::temp_dir().join(format!("bruchteil-lost-{}", std::process::id()));
    std::fs::write(&path, vec![1; 1 << 20]).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .arg("--nocapture")
        .env(VARIABLE, &path)
        .output()
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert_eq!(child.status.code(), Some(3), "{said}");
    assert!(
        said.contains("shortened") && said.contains("--load read"),
        "{said}"
    );
}
