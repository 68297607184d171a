//! SIGINT and SIGTERM: the first asks for a stop at the next safe place, the second exits at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::failure::{FAILURE, Failure};

/// Remembers which signal came.
#[derive(Clone)]
pub struct Signals {
    received: Arc<AtomicUsize>,
}

impl Signals {
    /// Starts listening.
    ///
    /// # Errors
    /// The system refuses.
    pub fn listen() -> Result<Signals, Failure> {
        let refused = |error: std::io::Error| {
            let cause = format!("cannot listen for signals: {error}");
            Failure::new(FAILURE, cause, "run it where signals are allowed")
        };
        let received = Arc::new(AtomicUsize::new(0));
        let again = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: on the first signal the flag is still down when the exit looks at it.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again))
                .map_err(refused)?;
            flag::register(signal, Arc::clone(&again)).map_err(refused)?;
            flag::register_usize(
                signal,
                Arc::clone(&received),
                signal.unsigned_abs() as usize,
            )
            .map_err(refused)?;
        }
        Ok(Signals { received })
    }

    /// The signal that asked for a stop.
    pub fn received(&self) -> Option<i32> {
        match self.received.load(Ordering::Relaxed) {
            0 => None,
            signal => i32::try_from(signal).ok(),
        }
    }
}
