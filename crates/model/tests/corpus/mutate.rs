//! Random changes of files: what a fuzzer does, without knowing which of them reach new code.

/// Numbers at which arithmetic goes wrong, and small ones that hit type and dimension fields.
const NUMBERS: [u64; 20] = [
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    12,
    30,
    32,
    255,
    1 << 16,
    (1 << 31) - 1,
    u32::MAX as u64,
    1 << 32,
    1 << 40,
    (1 << 62) + 2,
    1 << 63,
    u64::MAX - 31,
    u64::MAX,
];

/// Words of JSON and decimal numbers that text is changed to.
const WORDS: [&str; 16] = [
    "0",
    "-1",
    "1e999",
    "1.5",
    "null",
    "true",
    "[]",
    "{}",
    "\"x\"",
    "[[",
    "18446744073709551615",
    "1e-45",
    "3.4e38",
    "2",
    "128",
    "0.30000000000000004",
];

/// A source of changes: the same seed gives the same changes.
pub struct Mutator(u64);

impl Mutator {
    pub fn new(seed: u64) -> Mutator {
        Mutator(seed)
    }

    /// A number below `below`, or 0. SplitMix64 (Steele et al., 2014).
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) as usize % below.max(1)
    }

    /// A stretch of at most `longest` bytes.
    fn stretch(&mut self, bytes: &[u8], longest: usize) -> std::ops::Range<usize> {
        let start = self.next(bytes.len());
        let length = 1 + self.next(longest);
        start..bytes.len().min(start + length)
    }

    /// `bytes` after one to four changes; `other` gives pieces.
    pub fn change(&mut self, bytes: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..1 + self.next(4) {
            self.change_once(&mut bytes, other);
        }
        bytes
    }

    fn change_once(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        if bytes.is_empty() {
            bytes.extend_from_slice(other);
            return;
        }
        let at = self.next(bytes.len());
        match self.next(9) {
            0 => bytes[at] ^= 1 << self.next(8),
            1 => bytes[at] = self.next(256) as u8,
            2 => bytes.truncate(at),
            3 => {
                let range = self.stretch(bytes, 64);
                let copy = bytes[range].to_vec();
                bytes.splice(at..at, copy);
            }
            4 => {
                let range = self.stretch(bytes, 16);
                bytes.drain(range);
            }
            5 => {
                let piece = other[self.stretch(other, 64)].to_vec();
                bytes.splice(at..at, piece);
            }
            6 => self.replace_number(bytes, at),
            7 => bytes.splice(at..at, [self.next(128) as u8]).for_each(drop),
            _ => {
                let number = NUMBERS[self.next(NUMBERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][self.next(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
        }
    }

    /// Puts a word in place of the decimal number from `at` on, or of the byte there.
    fn replace_number(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let start = bytes[at..]
            .iter()
            .position(u8::is_ascii_digit)
            .map_or(at, |skipped| at + skipped);
        let digits = bytes[start..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit());
        let end = start + digits.count().max(1);
        let word = match self.next(3) {
            0 => NUMBERS[self.next(NUMBERS.len())].to_string(),
            _ => WORDS[self.next(WORDS.len())].to_string(),
        };
        bytes.splice(start..end, word.into_bytes());
    }
}
