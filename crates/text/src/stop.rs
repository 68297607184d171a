//! Stop strings in text that comes in chunks.

/// Finds the first stop string in a text that comes in chunks. However the text is cut, the texts
/// of all pieces and of [`StopMatcher::finish`], joined, are the same: what stands before the first
/// stop string, or everything where there is none.
///
/// First is the one that *ends* first, so that nothing has to wait for a longer one; of several
/// that end at the same place, the longest. Held back is only what may be the beginning of a stop
/// string: less than the longest of them.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<Stop>,
    /// Text that is not yet given.
    held: String,
    stopped: bool,
}

/// What became certain with a chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Text in front of any stop string; may be empty.
    pub text: String,
    /// The place in the list of the stop string that ended the text with this chunk.
    pub stop: Option<usize>,
}

/// A string as the search of Knuth, Morris and Pratt (1977) wants it.
#[derive(Clone, Debug)]
struct Stop {
    /// Its place in the caller's list.
    index: usize,
    bytes: Vec<u8>,
    /// For each length of a beginning, the longest shorter beginning that is also its end.
    shorter: Vec<usize>,
    /// Bytes at the end of the text that are a beginning of the string.
    matched: usize,
}

impl Stop {
    fn new(index: usize, bytes: Vec<u8>) -> Stop {
        let mut shorter = vec![0; bytes.len() + 1];
        let mut matched = 0;
        for end in 1..bytes.len() {
            while matched > 0 && bytes[end] != bytes[matched] {
                matched = shorter[matched];
            }
            matched += usize::from(bytes[end] == bytes[matched]);
            shorter[end + 1] = matched;
        }
        Stop {
            index,
            bytes,
            shorter,
            matched: 0,
        }
    }

    /// Takes the text's next byte; whether the whole string now stands at the text's end.
    fn push(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.shorter[self.matched];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        self.matched == self.bytes.len()
    }
}

impl StopMatcher {
    /// An empty string never stops anything. Work per byte grows with the number of strings, which
    /// the caller bounds.
    pub fn new(stops: Vec<String>) -> StopMatcher {
        let stops = stops.into_iter().map(String::into_bytes).enumerate();
        let mut stops: Vec<Stop> = stops
            .filter(|(_, bytes)| !bytes.is_empty())
            .map(|(index, bytes)| Stop::new(index, bytes))
            .collect();
        // The longest comes first, so the first that is found is the longest.
        stops.sort_by_key(|stop| std::cmp::Reverse(stop.bytes.len()));
        StopMatcher {
            stops,
            held: String::new(),
            stopped: false,
        }
    }

    /// The text that this chunk makes certain. After a stop string, nothing more comes.
    pub fn push(&mut self, chunk: &str) -> Passed {
        if self.stopped {
            return Passed::default();
        }
        let before = self.held.len();
        self.held += chunk;
        for (offset, byte) in chunk.bytes().enumerate() {
            let mut found = None;
            for stop in &mut self.stops {
                if stop.push(byte) && found.is_none() {
                    found = Some((stop.index, stop.bytes.len()));
                }
            }
            if let Some((index, length)) = found {
                self.stopped = true;
                self.held.truncate(before + offset + 1 - length);
                return Passed {
                    text: std::mem::take(&mut self.held),
                    stop: Some(index),
                };
            }
        }
        // A beginning of a string is found in UTF-8 only where a character begins.
        let open = self
            .stops
            .iter()
            .map(|stop| stop.matched)
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - open);
        Passed {
            text: std::mem::replace(&mut self.held, rest),
            stop: None,
        }
    }

    /// What is still held back, after the last chunk.
    pub fn finish(self) -> String {
        self.held
    }
}
