//! Replays the seeds of the fuzz targets: nothing panics, and what loads keeps its promises.

use std::fs;
use std::path::{Path, PathBuf};
use text::{ChatTemplate, Tokenizer, parts_of};

fn seeds(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let entries = fs::read_dir(root.join(folder)).expect("the corpus");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    assert!(paths.len() > 10, "{folder} has {} seeds", paths.len());
    paths
}

/// Seeds say in their names whether they load.
fn is_valid(path: &Path) -> bool {
    let name = path.file_name().expect("name").to_string_lossy();
    name.starts_with("valid_")
}

#[test]
fn tokenizers_load_or_are_refused() {
    for path in seeds("tokenizer") {
        let shown = path.display();
        let tokenizer = match Tokenizer::from_file(&path) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                assert!(!is_valid(&path), "{shown}: {error}");
                assert!(error.to_string().len() < 1000, "{shown}: {error}");
                continue;
            }
        };
        let text = "ab a\u{1F600} <eos><x> ".repeat(500);
        for ids in [tokenizer.encode(&text), tokenizer.encode_plain(&text)] {
            let ids = ids.unwrap_or_default();
            assert!(ids.len() <= text.len(), "{shown}");
            let mut stream = tokenizer.stream(true);
            let mut streamed = String::new();
            for &id in &ids {
                streamed += &stream.push(id).unwrap();
            }
            streamed += &stream.finish().unwrap();
            assert_eq!(streamed, tokenizer.decode(&ids, true).unwrap(), "{shown}");
        }
        let again = Tokenizer::from_json(&tokenizer.to_json().unwrap()).unwrap();
        assert_eq!(again.added_tokens(), tokenizer.added_tokens(), "{shown}");
        let _ = parts_of(&tokenizer.to_json().unwrap());
    }
}

#[test]
fn templates_render_or_are_refused() {
    for path in seeds("template") {
        let source = fs::read_to_string(&path).expect("seed");
        let rendered = ChatTemplate::new(&source).and_then(|template| template.probe());
        match rendered {
            Ok(text) => assert!(text.len() <= 16 << 20),
            Err(error) => assert!(!is_valid(&path), "{}: {error}", path.display()),
        }
    }
}
