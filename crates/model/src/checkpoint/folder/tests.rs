//! Every single change to the disk that replacing a folder makes, failed or cut short in turn.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use super::*;
use crate::checkpoint::read_weights;

/// More than one buffer of data, so that the file is written in several pieces.
const VOCABULARY: usize = 40_000;

struct Fixture {
    parent: PathBuf,
    config: Config,
    layout: Layout,
}

impl Fixture {
    fn new(name: &str) -> Fixture {
        let parent = std::env::temp_dir().join(format!("bruchteil-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&parent);
        fs::create_dir_all(&parent).unwrap();
        let text = format!(
            r#"{{"model_type": "deepseek_v3", "vocab_size": {VOCABULARY}, "hidden_size": 8,
            "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1,
            "q_lora_rank": null, "kv_lora_rank": 4, "qk_nope_head_dim": 2,
            "qk_rope_head_dim": 2, "v_head_dim": 2}}"#
        );
        let config = Config::from_json(&text).unwrap();
        let layout = Layout::new(&config);
        Fixture {
            parent,
            config,
            layout,
        }
    }

    fn dir(&self) -> PathBuf {
        self.parent.join("model")
    }

    /// Writes a model whose weights are all `value`, with `before` called before every change.
    fn write(
        &self,
        value: f32,
        before: &mut dyn FnMut(&'static str) -> io::Result<()>,
    ) -> Result<(), Error> {
        let weights = vec![value; self.layout.total_len];
        let dtype = WeightDtype::F32;
        let extras = [("tokenizer.json", &b"{}"[..])];
        let mut contents = flat_contents(&self.config, &self.layout, &weights, &extras, dtype);
        let mut disk = Disk::new(contents.bytes(), before);
        contents.replace(&self.dir(), &mut disk)
    }

    /// The value of the model in place, which must be whole.
    fn value(&self) -> f32 {
        assert_eq!(Config::read(&self.dir()).unwrap(), self.config);
        let weights = read_weights(&self.dir(), &self.config, &self.layout).unwrap();
        let value = weights.data[0];
        let all = self
            .layout
            .tensors
            .iter()
            .all(|s| weights.data[s.range()].iter().all(|&v| v == value));
        assert!(all, "weights of two checkpoints in one file");
        value
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.parent).unwrap();
        entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.parent);
    }
}

fn full_disk() -> io::Error {
    io::Error::from(ErrorKind::StorageFull)
}

#[test]
fn a_failure_at_any_step_leaves_the_old_folder_and_nothing_beside_it() {
    let fixture = Fixture::new("fail");
    fixture.write(1.0, &mut |_| Ok(())).unwrap();
    let mut steps = Vec::new();
    for fail_at in 0.. {
        steps.clear();
        let written = fixture.write(2.0, &mut |step| {
            steps.push(step);
            if steps.len() == fail_at + 1 {
                Err(full_disk())
            } else {
                Ok(())
            }
        });
        let Err(error) = written else { break };
        assert_eq!(error.exit_code(), 4, "{error}");
        assert!(error.to_string().contains("bytes needed"), "{error}");
        let in_place = steps
            .iter()
            .filter(|step| **step == "renaming into place")
            .count()
            == 2
            && steps.last() == Some(&"syncing the folder");
        assert_eq!(
            fixture.value(),
            if in_place { 2.0 } else { 1.0 },
            "step {fail_at}"
        );
        if in_place {
            recover_folder(&fixture.dir()).unwrap();
        }
        assert_eq!(fixture.names(), ["model"], "step {fail_at}");
        fixture.write(1.0, &mut |_| Ok(())).unwrap();
    }
    let writes = steps.iter().filter(|step| **step == "writing").count();
    assert!(writes > 4, "the model was written in one piece: {steps:?}");
    assert_eq!(fixture.value(), 2.0);
}

#[test]
fn a_stop_at_any_step_leaves_a_whole_folder_to_recover() {
    let fixture = Fixture::new("stop");
    fixture.write(1.0, &mut |_| Ok(())).unwrap();
    for stop_at in 0.. {
        let mut steps = 0;
        let stopped = catch_unwind(AssertUnwindSafe(|| {
            fixture.write(2.0, &mut |_| {
                steps += 1;
                // Unwinding past the clean-up leaves the disk as a kill would.
                if steps == stop_at + 1 {
                    std::panic::resume_unwind(Box::new("killed"))
                }
                Ok(())
            })
        }));
        if let Ok(written) = stopped {
            written.unwrap();
            break;
        }
        recover_folder(&fixture.dir()).unwrap();
        assert!([1.0, 2.0].contains(&fixture.value()), "step {stop_at}");
        assert_eq!(fixture.names(), ["model"], "step {stop_at}");
        fixture.write(1.0, &mut |_| Ok(())).unwrap();
    }
    assert_eq!(fixture.value(), 2.0);
}

#[test]
fn a_first_write_that_fails_leaves_nothing() {
    let fixture = Fixture::new("first");
    for fail_at in 0..8 {
        let mut steps = 0;
        let written = fixture.write(1.0, &mut |_| {
            steps += 1;
            if steps == fail_at + 1 {
                Err(full_disk())
            } else {
                Ok(())
            }
        });
        assert_eq!(written.unwrap_err().exit_code(), 4);
        assert_eq!(fixture.names(), Vec::<String>::new(), "step {fail_at}");
    }
}
