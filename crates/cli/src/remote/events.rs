//! Server-sent events (HTML Living Standard, 9.2.6), of which the API uses the data alone.

use std::fmt;
use std::io::{self, BufRead, Read};

/// Longer lines, and events of more bytes, end the stream: a server could fill the memory.
const LONGEST_LINE: usize = 1 << 20;
const LONGEST_EVENT: usize = 4 << 20;

/// The events of a stream, one after the other.
pub struct Events<R> {
    source: R,
    line: Vec<u8>,
    is_first_line: bool,
}

/// Why no more events come.
#[derive(Debug)]
pub enum Broken {
    Io(io::Error),
    TooLong { what: &'static str, limit: usize },
    NotText,
}

impl<R: BufRead> Events<R> {
    pub fn new(source: R) -> Events<R> {
        Events {
            source,
            line: Vec::new(),
            is_first_line: true,
        }
    }

    /// The data of the next event; `None` at the end. An event that the end cuts off is none.
    ///
    /// # Errors
    /// The connection breaks, or the server sends what is too long or no text.
    pub fn next(&mut self) -> Result<Option<String>, Broken> {
        let mut data: Option<String> = None;
        while self.read_line()? {
            let text = std::str::from_utf8(&self.line).map_err(|_| Broken::NotText)?;
            // A carriage return alone ends a line too.
            for line in text.split('\r') {
                if line.is_empty() {
                    if let Some(data) = data.take().filter(|data| !data.is_empty()) {
                        return Ok(Some(data));
                    }
                } else if let Some(more) = data_of(line) {
                    let joined = data.get_or_insert_default();
                    if joined.len() + more.len() > LONGEST_EVENT {
                        let (what, limit) = ("an event", LONGEST_EVENT);
                        return Err(Broken::TooLong { what, limit });
                    }
                    if !joined.is_empty() {
                        joined.push('\n');
                    }
                    *joined += more;
                }
            }
        }
        Ok(None)
    }

    /// Reads a line, without what ends it. False at the end of the stream.
    fn read_line(&mut self) -> Result<bool, Broken> {
        self.line.clear();
        let mut bounded = (&mut self.source).take(LONGEST_LINE as u64 + 1);
        let read = bounded.read_until(b'\n', &mut self.line);
        read.map_err(Broken::Io)?;
        if self.line.len() > LONGEST_LINE {
            let (what, limit) = ("a line", LONGEST_LINE);
            return Err(Broken::TooLong { what, limit });
        }
        if self.line.pop_if(|&mut last| last == b'\n').is_none() {
            return Ok(false);
        }
        self.line.pop_if(|&mut last| last == b'\r');
        if std::mem::take(&mut self.is_first_line) && self.line.starts_with(b"\xef\xbb\xbf") {
            self.line.drain(..3);
        }
        Ok(true)
    }
}

/// What follows `data:`, but for one blank. Comments and other fields have none.
fn data_of(line: &str) -> Option<&str> {
    let (field, value) = line.split_once(':').unwrap_or((line, ""));
    (field == "data").then(|| value.strip_prefix(' ').unwrap_or(value))
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Io(error) => write!(f, "the connection broke: {error}"),
            Broken::TooLong { what, limit } => {
                write!(f, "the server sent {what} of more than {limit} bytes")
            }
            Broken::NotText => write!(f, "the server sent what is not UTF-8"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn events(bytes: &[u8], capacity: usize) -> Result<Vec<String>, Broken> {
        let mut events = Events::new(BufReader::with_capacity(capacity, bytes));
        let mut all = Vec::new();
        while let Some(data) = events.next()? {
            all.push(data);
        }
        Ok(all)
    }

    /// The first two texts are examples of the standard.
    #[test]
    fn events_are_read_as_the_standard_says() {
        for (text, expected) in [
            ("data: YHOO\ndata: +2\ndata: 10\n\n", &["YHOO\n+2\n10"][..]),
            (
                ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\n\
                 data:  third event\n\n",
                &["first event", "second event", " third event"],
            ),
            ("\u{feff}data: a\r\n\r\ndata: b\r\n\r\n", &["a", "b"]),
            ("data: a\rdata: b\r\r\n", &["a\nb"]),
            (
                "event: error\nretry: 10\ndatum: x\n\n\ndata\n\ndata: é\n\n",
                &["é"],
            ),
            ("data: a\n\ndata: cut off\n", &["a"]),
            ("data: a\n\ndata: cut", &["a"]),
            ("", &[]),
        ] {
            for capacity in [1, 3, 4096] {
                let found = events(text.as_bytes(), capacity).expect("a good stream");
                assert_eq!(found, expected, "{text:?} read {capacity} bytes at a time");
            }
        }
    }

    #[test]
    fn what_would_fill_the_memory_is_refused() {
        let endless = io::repeat(b'a').take(1 << 30);
        let mut stream = Events::new(BufReader::new(endless));
        let error = stream.next().expect_err("a line without end");
        assert!(error.to_string().contains("1048576"), "{error}");
        let lines = format!("data: {}\n", "a".repeat(LONGEST_LINE - 7)).repeat(5);
        let error = events(lines.as_bytes(), 4096).expect_err("an event without end");
        assert!(error.to_string().contains("an event"), "{error}");
        assert!(matches!(events(b"data: \xff\n\n", 9), Err(Broken::NotText)));
    }
}
