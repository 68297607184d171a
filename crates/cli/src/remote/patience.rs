//! How long a busy server is asked again.

use std::time::Duration;

/// In all, for one request.
const ALL: Duration = Duration::from_secs(60);
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(8);
/// A server that says "at once" is not asked a thousand times.
const SHORTEST: Duration = Duration::from_millis(50);
/// Seconds beyond any patience.
const FOR_EVER: f64 = 1e6;

pub struct Patience {
    left: Duration,
    /// Where the server does not say when to come back.
    next: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        let (left, next) = (ALL, FIRST);
        Patience { left, next }
    }
}

impl Patience {
    /// How long to wait before the next attempt: as the server's `Retry-After` says in seconds,
    /// else twice as long each time. `None` if that is more than is left.
    pub fn wait(&mut self, retry_after: Option<&str>) -> Option<Duration> {
        let seconds = retry_after.and_then(|text| text.trim().parse::<f64>().ok());
        let wait = match seconds.filter(|&seconds| seconds >= 0.0) {
            Some(seconds) => Duration::from_secs_f64(seconds.min(FOR_EVER)).max(SHORTEST),
            None => {
                let wait = self.next;
                self.next = (2 * wait).min(LONGEST);
                wait
            }
        };
        self.left = self.left.checked_sub(wait)?;
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_waited_and_no_longer() {
        let mut patience = Patience::default();
        let waits: Vec<f64> = std::iter::from_fn(|| patience.wait(None))
            .map(|wait| wait.as_secs_f64())
            .collect();
        assert_eq!(waits[..6], [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]);
        assert!(waits.iter().sum::<f64>() <= 60.0);
        assert!(waits.len() < 13, "{waits:?}");
    }

    #[test]
    fn the_server_says_when_to_come_back() {
        let mut patience = Patience::default();
        assert_eq!(patience.wait(Some(" 2 ")), Some(Duration::from_secs(2)));
        assert_eq!(patience.wait(Some("0")), Some(SHORTEST));
        for unclear in ["-1", "NaN", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert!(
                Patience::default().wait(Some(unclear)) == Some(FIRST),
                "{unclear}"
            );
        }
        assert_eq!(patience.wait(Some("3600")), None);
        assert_eq!(patience.wait(Some("1e300")), None);
        assert_eq!(patience.wait(None), Some(FIRST));
    }
}
