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

/// SIGINT in a conversation. While the program waits for a line it ends it; during an answer the
/// first asks for the answer's end, the second ends the program.
#[derive(Clone)]
pub struct Interrupts {
    waiting: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
}

impl Interrupts {
    /// Starts listening; the program counts as waiting.
    ///
    /// # Errors
    /// The system refuses.
    pub fn listen() -> Result<Interrupts, Failure> {
        let waiting = Arc::new(AtomicBool::new(true));
        let asked = Arc::new(AtomicBool::new(false));
        // In this order: on the first signal `asked` is still down when the exit looks at it.
        for ends in [&waiting, &asked] {
            flag::register_conditional_shutdown(SIGINT, 128 + SIGINT, Arc::clone(ends))
                .map_err(refused)?;
        }
        flag::register(SIGINT, Arc::clone(&asked)).map_err(refused)?;
        Ok(Interrupts { waiting, asked })
    }

    /// An answer begins.
    pub fn begin(&self) {
        self.asked.store(false, Ordering::Relaxed);
        self.waiting.store(false, Ordering::Relaxed);
    }

    /// The answer is over, and the program waits again.
    pub fn end(&self) {
        self.waiting.store(true, Ordering::Relaxed);
    }

    /// Whether the answer is to end.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}

fn refused(error: std::io::Error) -> Failure {
    let cause = format!("cannot listen for signals: {error}");
    Failure::new(FAILURE, cause, "run it where signals are allowed")
}
