//! How much memory there is.

/// All of the machine's, in bytes; `None` where the system does not say.
pub fn total() -> Option<u64> {
    line("MemTotal:")
}

/// What can be taken without pushing other programs out, in bytes: of the machine's memory, of
/// what is left of this process's own limit, and of its control group's.
pub fn available() -> Option<u64> {
    let machine = line("MemAvailable:");
    [machine, address_space(), control_group()]
        .into_iter()
        .flatten()
        .min()
}

/// What `ulimit -v` leaves.
fn address_space() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let mut lines = limits.lines();
    let soft = lines.find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = soft.split_whitespace().next()?.parse().ok()?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let used = status
        .lines()
        .find_map(|line| line.strip_prefix("VmSize:"))?;
    let kibibytes: u64 = used.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(1024 * kibibytes))
}

/// What a container's limit leaves (control groups, version 2).
fn control_group() -> Option<u64> {
    let number = |file: &str| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?;
        text.trim().parse().ok()
    };
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
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
