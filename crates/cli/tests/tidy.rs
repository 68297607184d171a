//! The rules of CONTRIBUTING.md and ARCHITECTURE.md that a program can check.
//!
//! Nothing here knows Rust's grammar: sources are split into code, comments and strings by a small
//! scanner (`tidy/scan.rs`, with tests of its own), and the rules are searches over what is left.
#![forbid(unsafe_code)]

#[path = "tidy/scan.rs"]
mod scan;

use scan::{Function, Scan, functions, has_unsafe_block, scan, without_test_modules};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const MAX_COLUMNS: usize = 100;
const MAX_FILE_LINES: usize = 650;
const MAX_FUNCTION_LINES: usize = 70;
/// How far above an `unsafe` its reason may stand.
const SAFETY_LINES: usize = 6;
/// Bytes beyond which a file is data, not text.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Words that may stand neither in code nor in comments.
const UNFINISHED: [&str; 5] = ["todo!(", "unimplemented!(", "TODO", "FIXME", "XXX"];
/// Ways to hide what is broken or unused.
const HIDDEN: [&str; 2] = ["#[ignore", "allow(dead_code"];

#[test]
fn internal_dependencies_are_the_arrows_of_the_architecture() {
    let mut found = BTreeMap::new();
    let crates = crate_names();
    for name in &crates {
        let manifest = Manifest::read(name);
        let inside = |names: &BTreeSet<String>| names.intersection(&crates).cloned().collect();
        let normal: BTreeSet<String> = inside(&manifest.dependencies);
        let for_tests: BTreeSet<String> = inside(&manifest.dev_dependencies);
        assert!(
            for_tests.is_subset(&normal),
            "crates/{name}/Cargo.toml: tests add an arrow: {for_tests:?}"
        );
        found.insert(name.clone(), normal);
    }
    let architecture = read(&root().join("ARCHITECTURE.md"));
    assert_eq!(
        found,
        arrows(&architecture),
        "manifests (left) and the block of arrows in ARCHITECTURE.md (right) differ"
    );
}

#[test]
fn external_dependencies_are_those_of_the_table() {
    let crates = crate_names();
    let mut found = BTreeSet::new();
    for name in &crates {
        let manifest = Manifest::read(name);
        found.extend(manifest.dependencies);
        found.extend(manifest.dev_dependencies);
    }
    let found: BTreeSet<String> = found.difference(&crates).cloned().collect();
    let architecture = read(&root().join("ARCHITECTURE.md"));
    assert_eq!(
        found,
        table_of_dependencies(&architecture),
        "manifests (left) and the table of dependencies in ARCHITECTURE.md (right) differ"
    );
}

#[test]
fn the_tests_of_the_laws_exist() {
    let architecture = read(&root().join("ARCHITECTURE.md"));
    let named = tests_of_the_laws(&architecture);
    assert!(
        named.len() > 10,
        "the table of the laws has moved: {named:?}"
    );
    let sources = sources();
    let missing = named
        .into_iter()
        .filter(|name| {
            let declaration = format!("fn {name}()");
            !sources.iter().any(|s| s.text.contains(&declaration))
        })
        .collect();
    none("tests of the laws that do not exist", missing);
}

#[test]
fn files_are_short() {
    let long = sources()
        .into_iter()
        .filter(|s| s.in_src())
        .filter_map(|s| {
            let lines = s.text.lines().count();
            (lines >= MAX_FILE_LINES).then(|| format!("{}: {lines} lines", s.name))
        });
    none(
        "files of 650 lines or more; split them by idea",
        long.collect(),
    );
}

#[test]
fn lines_are_short() {
    let mut long = Vec::new();
    for source in sources() {
        for (i, line) in source.text.lines().enumerate() {
            let columns = line.chars().count();
            // An address cannot be broken.
            if columns > MAX_COLUMNS && !line.contains("://") {
                long.push(format!("{}:{}: {columns} columns", source.name, i + 1));
            }
        }
    }
    none("lines beyond 100 columns", long);
}

#[test]
fn functions_are_short() {
    let mut long = Vec::new();
    for source in sources().iter().filter(|s| s.in_src()) {
        for function in functions(&source.scan().code) {
            if function.lines > MAX_FUNCTION_LINES {
                let Function { name, line, lines } = function;
                long.push(format!("{}:{line}: {name}: {lines} lines", source.name));
            }
        }
    }
    none("functions of more than 70 lines", long);
}

#[test]
fn nothing_is_left_unfinished_or_hidden() {
    let mut found = Vec::new();
    for source in sources() {
        let scan = source.scan();
        for (i, (code, comment)) in scan.code.lines().zip(scan.comments.lines()).enumerate() {
            let unfinished = UNFINISHED
                .iter()
                .filter(|word| code.contains(**word) || comment.contains(**word));
            let hidden = HIDDEN.iter().filter(|word| code.contains(**word));
            for word in unfinished.chain(hidden) {
                found.push(format!("{}:{}: {word}", source.name, i + 1));
            }
        }
    }
    none("work left undone or hidden", found);
}

#[test]
fn every_unsafe_says_why_it_is_safe() {
    let mut silent = Vec::new();
    for source in sources() {
        let scan = source.scan();
        let comments: Vec<&str> = scan.comments.lines().collect();
        if scan.comments.contains("SAFETY of every block here") {
            continue;
        }
        for (i, code) in scan.code.lines().enumerate() {
            let above = &comments[i.saturating_sub(SAFETY_LINES)..=i];
            let said = above.iter().any(|line| line.contains("SAFETY"));
            if has_unsafe_block(code) && !said {
                silent.push(format!("{}:{}", source.name, i + 1));
            }
        }
    }
    none("unsafe without a SAFETY comment in the lines above", silent);
}

#[test]
fn only_kernels_may_hold_unsafe_code() {
    for name in crate_names() {
        let src = root().join("crates").join(&name).join("src");
        let roots = ["lib.rs", "main.rs"].map(|file| src.join(file));
        for path in roots.iter().filter(|path| path.exists()) {
            let forbids = scan(&read(path)).code.contains("#![forbid(unsafe_code)]");
            assert_eq!(
                forbids,
                name != "kernels",
                "crates/{name}: every crate but kernels begins with #![forbid(unsafe_code)]"
            );
        }
    }
}

#[test]
fn only_cli_reads_the_environment_and_the_clock() {
    let mut reading = Vec::new();
    for source in sources().iter().filter(|s| s.in_src()) {
        let code = without_test_modules(&source.scan().code);
        for word in ["env::var", "Instant::now", "SystemTime::now"] {
            // A foreign template is stopped by a clock as well, and a server gives up clients that
            // are silent and tells how long things took: that gives no result, only errors and
            // figures.
            let may_time = source.name == "crates/text/src/chat_template/budget.rs"
                || source.name.starts_with("crates/serve/");
            let allowed =
                source.name.starts_with("crates/cli/") || may_time && word == "Instant::now";
            if !allowed && code.contains(word) {
                reading.push(format!("{}: {word}", source.name));
            }
        }
    }
    none("environment or clock read outside cli", reading);
}

#[test]
fn every_source_file_belongs_to_its_crate() {
    let sources = sources();
    let mut dead = Vec::new();
    for source in sources.iter().filter(|s| s.in_src()) {
        let path = Path::new(&source.name);
        let mut module = stem(path);
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        if module == "mod" {
            module = path.parent().map(stem).unwrap_or_default();
        }
        let (declaration, by_path) = (format!("mod {module};"), format!("\"{}\"", name_of(path)));
        let home = crate_of(&source.name);
        let mut others = sources.iter().filter(|s| crate_of(&s.name) == home);
        if !others.any(|s| s.text.contains(&declaration) || s.text.contains(&by_path)) {
            dead.push(source.name.clone());
        }
    }
    none("files that no module declares", dead);
}

#[test]
fn no_text_names_a_place_on_one_machine() {
    let here = root().canonicalize().expect("the workspace exists");
    let here = here.to_string_lossy().into_owned();
    let mut places = vec!["/home/".to_string(), "/Users/".to_string()];
    // A workspace at the root of a disk has a name too short to search for.
    if here.matches('/').count() > 1 {
        places.push(here);
    }
    let own = root().join("crates/cli/tests/tidy.rs");
    let mut found = Vec::new();
    for path in texts().into_iter().filter(|path| *path != own) {
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        for (i, line) in text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place.as_str())) {
                found.push(format!("{}:{}", relative(&path), i + 1));
            }
        }
    }
    none("paths of one machine", found);
}

// ---- the workspace ----

fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = own.ancestors().nth(2);
    root.expect("crates/cli lies in the workspace")
        .to_path_buf()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn relative(path: &Path) -> String {
    let path = path.strip_prefix(root()).unwrap_or(path);
    path.to_string_lossy().replace('\\', "/")
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// `crates/NAME` of a path below it.
fn crate_of(name: &str) -> String {
    name.split('/').take(2).collect::<Vec<_>>().join("/")
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    paths.sort();
    paths
}

/// All files below a folder, in order; nothing where the folder does not exist.
fn files(dir: &Path) -> Vec<PathBuf> {
    if !dir.exists() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for path in entries(dir) {
        if path.is_dir() && !["target", "__pycache__"].contains(&name_of(&path).as_str()) {
            found.extend(files(&path));
        } else if path.is_file() {
            found.push(path);
        }
    }
    found
}

fn crate_names() -> BTreeSet<String> {
    let crates = entries(&root().join("crates"));
    let crates = crates
        .iter()
        .filter(|path| path.join("Cargo.toml").exists());
    let names: BTreeSet<String> = crates.map(|path| name_of(path)).collect();
    assert!(
        names.contains("cli"),
        "the workspace has moved: found {names:?}"
    );
    names
}

/// The text files that the project wrote. Folders that runs write into are not looked at.
fn texts() -> Vec<PathBuf> {
    let top = |dir: PathBuf| entries(&dir).into_iter().filter(|path| path.is_file());
    let mut paths: Vec<PathBuf> = top(root()).collect();
    if root().join("runs").exists() {
        paths.extend(top(root().join("runs")));
    }
    for folder in [".ci", "bench", "crates", "fuzz", "golden"] {
        paths.extend(files(&root().join(folder)));
    }
    let kinds = ["rs", "toml", "md", "py", "txt", "json", "jsonl", "lock", ""];
    paths.retain(|path| {
        let kind = path.extension().unwrap_or_default();
        let small = path
            .metadata()
            .is_ok_and(|about| about.len() <= MAX_TEXT_BYTES);
        small && kinds.iter().any(|k| kind == *k)
    });
    paths
}

struct Source {
    /// Path from the workspace, with `/`.
    name: String,
    text: String,
}

impl Source {
    /// A part of the library or program, not a test of it.
    fn in_src(&self) -> bool {
        let test = self.name.ends_with("/tests.rs") || self.name.ends_with("_tests.rs");
        self.name.split('/').nth(2) == Some("src") && !test
    }

    fn scan(&self) -> Scan {
        scan(&self.text)
    }
}

fn sources() -> Vec<Source> {
    let paths = files(&root().join("crates"));
    let paths = paths
        .into_iter()
        .filter(|path| path.extension().is_some_and(|kind| kind == "rs"));
    let sources: Vec<Source> = paths
        .map(|path| Source {
            name: relative(&path),
            text: read(&path),
        })
        .collect();
    assert!(
        sources
            .iter()
            .any(|s| s.name == "crates/kernels/src/lib.rs"),
        "the sources have moved"
    );
    sources
}

#[track_caller]
fn none(what: &str, found: Vec<String>) {
    assert!(
        found.is_empty(),
        "{} {what}:\n  {}",
        found.len(),
        found.join("\n  ")
    );
}

// ---- manifests and the architecture ----

#[derive(Default)]
struct Manifest {
    dependencies: BTreeSet<String>,
    dev_dependencies: BTreeSet<String>,
}

impl Manifest {
    fn read(crate_name: &str) -> Manifest {
        let path = root().join("crates").join(crate_name).join("Cargo.toml");
        Manifest::parse(&read(&path))
    }

    /// Reads the two ways of writing used here: `name = ...` and `name.workspace = true`.
    fn parse(text: &str) -> Manifest {
        let mut manifest = Manifest::default();
        let mut section = String::new();
        for line in text.lines().map(str::trim) {
            if let Some(header) = line.strip_prefix('[') {
                section = header.trim_end_matches(']').to_string();
                continue;
            }
            let name: String = line
                .chars()
                .take_while(|c| c.is_alphanumeric() || "-_".contains(*c))
                .collect();
            let names = if section.ends_with("dev-dependencies") {
                &mut manifest.dev_dependencies
            } else if section.ends_with("dependencies") {
                &mut manifest.dependencies
            } else {
                continue;
            };
            if !name.is_empty() && line.contains('=') {
                names.insert(name);
            }
        }
        manifest
    }
}

/// The fenced block marked `arrows`: a crate and what it may depend on, `-` for nothing.
fn arrows(architecture: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut lines = architecture.lines();
    lines
        .by_ref()
        .find(|line| line.trim() == "```arrows")
        .expect("ARCHITECTURE.md has a fenced block marked `arrows`");
    lines
        .take_while(|line| line.trim() != "```")
        .map(|line| {
            let mut words = line.split_whitespace().map(|w| w.trim_matches(','));
            let name = words.next().expect("no empty line among the arrows");
            let to = words.filter(|word| *word != "-").map(str::to_string);
            (name.to_string(), to.collect())
        })
        .collect()
}

/// First cells of the table below the heading `## Dependencies`, which are names in backquotes.
fn table_of_dependencies(architecture: &str) -> BTreeSet<String> {
    architecture
        .lines()
        .skip_while(|line| *line != "## Dependencies")
        .skip(1)
        .take_while(|line| !line.starts_with("## "))
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split_once('`'))
        .map(|(name, _)| name.to_string())
        .collect()
}

/// The names in backquotes in the last cells of the table below `## The law of the numbers`.
fn tests_of_the_laws(architecture: &str) -> BTreeSet<String> {
    architecture
        .lines()
        .skip_while(|line| *line != "## The law of the numbers")
        .skip(1)
        .take_while(|line| !line.starts_with("## "))
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .filter_map(|row| row.rsplit(" | ").next())
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(str::to_string)
        .collect()
}

#[test]
fn manifests_and_the_architecture_are_read_as_they_are_written() {
    let manifest = Manifest::parse(
        "[package]\nname = \"a\"\n[dependencies]\n# why\nb.workspace = true\n\
         c-d = { version = \"1\" }\n[dev-dependencies]\ne = \"2\"\n[lints]\nworkspace = true\n",
    );
    let names = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<BTreeSet<_>>();
    assert_eq!(manifest.dependencies, names(&["b", "c-d"]));
    assert_eq!(manifest.dev_dependencies, names(&["e"]));

    let text = "a\n```arrows\nb  -\nc  b, d\n```\ne f\n## Dependencies\n| crate |\n| `g-h` | x |\n\
                ## Next\n| `i` |\n";
    let arrows = arrows(text);
    assert_eq!(arrows["b"], names(&[]));
    assert_eq!(arrows["c"], names(&["b", "d"]));
    assert_eq!(arrows.len(), 2);
    assert_eq!(table_of_dependencies(text), names(&["g-h"]));
    let text = "## The law of the numbers\n| a | b |\n|---|---|\n| `c` | `d`, `e` |\n";
    assert_eq!(tests_of_the_laws(text), names(&["d", "e"]));
}
