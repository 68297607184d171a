//! Threads that split outputs.
//!
//! Work is a number of independent items; which thread runs an item never changes a result, so
//! items are claimed from a counter. Workers spin for a moment between calls, because the kernels
//! of one step follow each other within microseconds, and sleep when nothing comes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, TryLockError};
use std::thread::JoinHandle;

/// How often a worker looks for work before it sleeps: some tens of microseconds.
const SPINS: u32 = 4_000;

type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// Number of the current call; a change is the signal to start.
    epoch: AtomicUsize,
    next: AtomicUsize,
    items: AtomicUsize,
    /// Workers that have not finished the current call.
    running: AtomicUsize,
    job: Mutex<Option<SendJob>>,
    wake: Condvar,
    done: Condvar,
    stop: AtomicUsize,
    panicked: AtomicUsize,
}

#[derive(Clone, Copy)]
struct SendJob(Job);
// SAFETY: the job is Sync, and `Pool::run` does not return before every worker has let go of it.
unsafe impl Send for SendJob {}

/// A fixed set of threads, the caller's included.
pub struct Pool {
    /// Held during a call: the workers serve one caller at a time.
    caller: Mutex<()>,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` in all; at least one.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            items: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            job: Mutex::new(None),
            wake: Condvar::new(),
            done: Condvar::new(),
            stop: AtomicUsize::new(0),
            panicked: AtomicUsize::new(0),
        });
        let workers = (1..threads.max(1))
            .map(|_| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || work(&shared))
            })
            .collect();
        Pool {
            caller: Mutex::new(()),
            shared,
            workers,
        }
    }

    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f(i)` once for every i below `items`, on any thread, and waits for all. Where the
    /// workers are busy for another caller, or for this one (a nested call), the caller's own
    /// thread does everything.
    pub fn run(&self, items: usize, f: impl Fn(usize) + Sync) {
        let free = match self.caller.try_lock() {
            Ok(guard) => Some(guard),
            // A call that panicked waited for its workers first.
            Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if free.is_none() || self.workers.is_empty() || items <= 1 {
            (0..items).for_each(f);
            return;
        }
        let shared = &*self.shared;
        let job: &(dyn Fn(usize) + Sync) = &f;
        // SAFETY: only the lifetime is erased; this function outlives every use of the job.
        let job = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(job) };
        {
            let mut slot = shared
                .job
                .lock()
                .expect("no thread panics while it holds this lock");
            *slot = Some(SendJob(job));
            shared.next.store(0, Ordering::Relaxed);
            shared.items.store(items, Ordering::Relaxed);
            shared.running.store(self.workers.len(), Ordering::Relaxed);
            shared.epoch.fetch_add(1, Ordering::Release);
            self.shared.wake.notify_all();
        }
        // The workers hold a pointer to `f`: wait for them even if an item panics here.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| claim(shared, &f)));
        shared.wait_until_done();
        let panicked = shared.panicked.swap(0, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        assert_eq!(panicked, 0, "a kernel thread panicked");
    }

    /// Splits `0..len` into ranges of `chunk` (the last may be shorter) and calls `f` on each.
    /// The chunk is the caller's and fixed, so a reduction over a range has a fixed order.
    pub fn run_chunks(&self, len: usize, chunk: usize, f: impl Fn(std::ops::Range<usize>) + Sync) {
        self.run(len.div_ceil(chunk), |i| {
            f(i * chunk..len.min((i + 1) * chunk))
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(1, Ordering::Relaxed);
        {
            let _slot = self.shared.job.lock();
            self.shared.epoch.fetch_add(1, Ordering::Release);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Spins for a moment, then sleeps: a caller that yields in a loop would hand whole time
    /// slices to other processes.
    fn wait_until_done(&self) {
        for _ in 0..SPINS {
            if self.running.load(Ordering::Acquire) == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        let mut slot = self
            .job
            .lock()
            .expect("no thread panics while it holds this lock");
        while self.running.load(Ordering::Acquire) != 0 {
            slot = self
                .done
                .wait(slot)
                .expect("no thread panics while it holds this lock");
        }
    }
}

fn claim(shared: &Shared, f: &(dyn Fn(usize) + Sync)) {
    let items = shared.items.load(Ordering::Relaxed);
    loop {
        let i = shared.next.fetch_add(1, Ordering::Relaxed);
        if i >= items {
            return;
        }
        f(i);
    }
}

fn work(shared: &Shared) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while shared.epoch.load(Ordering::Acquire) == seen && spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
        }
        let job = {
            let mut slot = shared
                .job
                .lock()
                .expect("no thread panics while it holds this lock");
            while shared.epoch.load(Ordering::Acquire) == seen {
                slot = shared
                    .wake
                    .wait(slot)
                    .expect("no thread panics while it holds this lock");
            }
            *slot
        };
        seen = shared.epoch.load(Ordering::Acquire);
        if shared.stop.load(Ordering::Relaxed) != 0 {
            return;
        }
        if let Some(SendJob(job)) = job {
            // SAFETY: the caller waits in `run` until `running` is zero.
            let f = unsafe { &*job };
            let outcome =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| claim(shared, f)));
            if outcome.is_err() {
                shared.panicked.fetch_add(1, Ordering::Relaxed);
            }
        }
        if shared.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            // The lock orders this behind a caller that is just about to wait.
            drop(shared.job.lock());
            shared.done.notify_one();
        }
    }
}

/// A pointer that threads share to write disjoint parts of one buffer.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T>(*mut T, usize);
// SAFETY: the users below write disjoint ranges; each says why.
unsafe impl<T> Send for SharedMut<T> {}
unsafe impl<T> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub fn new(data: &mut [T]) -> SharedMut<T> {
        SharedMut(data.as_mut_ptr(), data.len())
    }

    /// # Safety
    /// No two threads may hold overlapping ranges at one time.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, range: std::ops::Range<usize>) -> &mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.1,
            "{range:?} of {}",
            self.1
        );
        // SAFETY: in bounds by the assertion, disjoint by contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }

    pub fn pointer(&self) -> *mut T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn every_item_runs_once_on_any_number_of_threads() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for items in [0, 1, 2, 5, 1000] {
                let seen: Vec<AtomicU64> = (0..items).map(|_| AtomicU64::new(0)).collect();
                pool.run(items, |i| {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(seen.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_in_an_item_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(100, |i| assert!(i != 50, "item {i}"));
        }));
        assert!(outcome.is_err());
        let sum = AtomicU64::new(0);
        pool.run(10, |i| {
            sum.fetch_add(i as u64, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 45);
    }

    #[test]
    fn callers_on_several_threads_and_nested_calls_each_get_their_items_once() {
        let pool = Pool::new(3);
        std::thread::scope(|scope| {
            for caller in 0..4u64 {
                let pool = &pool;
                scope.spawn(move || {
                    for _ in 0..200 {
                        let sum = AtomicU64::new(0);
                        pool.run(50, |i| {
                            pool.run(2, |j| {
                                sum.fetch_add(caller + (i * j) as u64, Ordering::Relaxed);
                            });
                        });
                        assert_eq!(sum.load(Ordering::Relaxed), 100 * caller + 1225);
                    }
                });
            }
        });
    }
}
