//! What the documents show of `audit` and `plan` is what these say.

use std::fs;
use std::path::Path;
use std::process::Command;

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn said(arguments: &[&str]) -> String {
    let program = env!("CARGO_BIN_EXE_bruchteil");
    let output = Command::new(program).args(arguments).output();
    let output = output.expect("the program starts");
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_readme_shows_what_audit_says() {
    let readme = document("README.md");
    let (_, shown) = readme.split_once("```audit\n").expect("a block of audit");
    let (shown, _) = shown.split_once("```").expect("its end");
    assert_eq!(shown.trim_end(), said(&["audit", "deepseek-v3"]).trim_end());
    // One screen.
    assert!(shown.lines().count() <= 40);
    assert!(shown.lines().all(|line| line.chars().count() <= 100));
}

#[test]
fn the_page_of_validation_has_every_step_and_every_run() {
    let page = document("crates/plan/VALIDATION.md");
    for step in plan::measured::all() {
        let row = format!("| {} | {} |", step.row.id, step.row.model);
        assert!(page.contains(&row), "{row}: write the page again");
    }
    for campaign in plan::campaigns::campaigns() {
        assert!(page.contains(&campaign.run.id), "{}", campaign.run.id);
    }
    let picture = document("crates/plan/VALIDATION.svg");
    assert!(picture.contains("<svg"));
}

/// The numbers of the page, but for its last digit, which another platform's `exp` may round
/// otherwise.
#[test]
fn the_page_of_validation_is_that_of_these_efficiencies() {
    let page = document("crates/plan/VALIDATION.md");
    let (_, table) = page
        .split_once("## Efficiencies")
        .expect("the last section");
    for entry in plan::efficiency::entries() {
        let name = serde_json::to_value(entry.name).expect("a name");
        let name = format!("| {} | ", name.as_str().expect("text"));
        let (_, row) = table.split_once(&name).unwrap_or_else(|| panic!("{name}"));
        let shown = row.split(' ').next().expect("a value");
        let shown: f64 = shown.parse().unwrap_or_else(|_| panic!("{name}: {shown}"));
        assert!(
            (shown / entry.value - 1.0).abs() < 6e-3,
            "{name}{shown}: write it again"
        );
    }
}
