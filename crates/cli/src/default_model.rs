//! The model of a command that was given none.

use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Where `demo` writes unless told otherwise.
const DEMO: &str = "demo-out";
/// Its models, the better one first.
const STAGES: [&str; 2] = ["grpo", "sft"];

/// The newest model of the demo in this folder.
///
/// # Errors
/// Exit code 2: there is none, and how to get one.
pub fn newest_of_the_demo() -> Result<PathBuf, Failure> {
    newest(Path::new(DEMO))
}

fn newest(demo: &Path) -> Result<PathBuf, Failure> {
    let is_model = |dir: &PathBuf| dir.join("config.json").exists() || dir.join("latest").exists();
    let mut models = STAGES.iter().map(|stage| demo.join(stage));
    models.find(is_model).ok_or_else(|| {
        let cause = format!("no model is given, and there is none in {}", demo.display());
        let advice = "run `bruchteil demo`, which makes one in minutes, or give a model folder or \
                      a GGUF file";
        Failure::usage(cause, advice)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_last_stage_that_is_there_is_taken() {
        let name = format!("bruchteil-default-{}", std::process::id());
        let demo = std::env::temp_dir().join(name);
        assert_eq!(newest(&demo).expect_err("nothing").exit_code(), 2);
        for stage in ["sft", "grpo"] {
            fs::create_dir_all(demo.join(stage)).expect("a folder");
            fs::write(demo.join(stage).join("config.json"), "{}").expect("a file");
            assert_eq!(newest(&demo).expect("a model"), demo.join(stage));
        }
        let _ = fs::remove_dir_all(&demo);
    }
}
