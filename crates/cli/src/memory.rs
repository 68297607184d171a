//! How much memory there is.

/// All of the machine's, in bytes; `None` where the system does not say.
pub fn total() -> Option<u64> {
    line("MemTotal:")
}

/// What can be taken without pushing other programs out, in bytes.
pub fn available() -> Option<u64> {
    line("MemAvailable:")
}

/// A line of Linux's table of memory, in bytes; `None` on other systems.
fn line(field: &str) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = table.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(1024 * kibibytes)
}

/// Bytes for a reader: 1536 as 1.5 KiB.
pub fn shown(bytes: u64) -> String {
    let mut size = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].iter().peekable();
    while let Some(unit) = units.next() {
        if size < 1024.0 || units.peek().is_none() {
            let digits = usize::from(*unit != "B");
            return format!("{size:.digits$} {unit}");
        }
        size /= 1024.0;
    }
    unreachable!("the last unit takes any size")
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn bytes_are_shown_in_the_largest_unit_that_they_fill() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (7 << 20, "7.0 MiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(shown(bytes), text);
        }
    }
}
