//! Names that are spelt like a given one, for a user who mistyped.

/// How many names are offered at most.
const OFFERED: usize = 3;

/// The names that differ least from `name`, best first, at most three; none that has less in
/// common with it than half its letters. Case, spaces and hyphens count for nothing.
pub fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let wanted = simplified(name);
    let mut offers: Vec<(usize, &str)> = names
        .map(|candidate| (difference(&wanted, &simplified(candidate)), candidate))
        .filter(|&(distance, _)| 2 * distance <= wanted.chars().count())
        .collect();
    // A stable sort, so that equals stay in the order of the table.
    offers.sort_by_key(|&(distance, _)| distance);
    let offers = offers.into_iter().take(OFFERED);
    offers.map(|(_, candidate)| candidate.to_string()).collect()
}

/// What is left of a name without case, spaces, hyphens and other signs.
pub fn simplified(name: &str) -> String {
    let letters = name.chars().filter(|c| c.is_alphanumeric());
    letters.flat_map(char::to_lowercase).collect()
}

/// Edits that turn one name into the other; what is only the beginning of a candidate counts as
/// none, because users leave off the end ("910b" for 910b1).
fn difference(wanted: &str, candidate: &str) -> usize {
    if !wanted.is_empty() && candidate.starts_with(wanted) {
        return 0;
    }
    edits(wanted, candidate)
}

/// The Levenshtein distance: insertions, deletions and replacements of one character each.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::{edits, nearest};

    #[test]
    fn edits_of_known_pairs() {
        // The textbook pair, and the degenerate ones.
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("abc", ""), 3);
        assert_eq!(edits("flaw", "lawn"), 2);
    }

    #[test]
    fn the_best_names_come_first_and_strangers_do_not_come() {
        let names = ["h100", "h800", "a100", "tpu-v4", "mi300x"];
        assert_eq!(nearest("H-801", names.into_iter()), ["h800", "h100"]);
        assert_eq!(nearest("mi300", names.into_iter()), ["mi300x"]);
        // A beginning goes before a name that differs by one letter.
        let names = ["910", "910b1", "910b2", "910c"];
        assert_eq!(nearest("910b", names.into_iter())[..2], ["910b1", "910b2"]);
        assert!(nearest("quantum", names.into_iter()).is_empty());
    }
}
