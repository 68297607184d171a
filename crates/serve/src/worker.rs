//! The one thread that computes. Requests come in through a channel and go out token by token; a
//! client that is gone, or does not read, costs no further step.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::{
    Engine, EngineConfig, Output, Request, SamplingParams, SequenceId, Stats, Submission,
};
use kernels::Cpu;
use model::Model;
use tokio::sync::mpsc::Sender as Sink;

/// Steps of each of its sequences that a client may leave unread; then it is cut off, so that what
/// is kept for it has a bound.
pub const UNREAD_STEPS: usize = 512;
/// A step longer than this means that the engine hangs. Prompts are computed in chunks, so a step
/// takes seconds at most, also with large models.
const LONGEST_STEP: Duration = Duration::from_secs(120);

/// Without work for so long, the server is at rest.
const QUIET: Duration = Duration::from_secs(3);

/// What computes.
pub struct Machine {
    pub model: Model,
    pub backend: Cpu,
    pub engine: EngineConfig,
}

/// What becomes of one sequence.
#[derive(Debug)]
pub enum Event {
    Accepted,
    Refused(engine::Error),
    Output(Output),
    /// Nothing more will come, through no fault of the request.
    Ended(&'static str),
}

/// An event, and the number that the request gave the sequence.
pub type Numbered = (usize, Event);

enum Command {
    Submit {
        ticket: u64,
        number: usize,
        submission: Box<Submission>,
        sink: Sink<Numbered>,
    },
    Cancel(u64),
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Starting,
    Ready,
    /// A step takes suspiciously long.
    Stuck,
    /// It broke down twice; the process should end.
    Broken,
}

#[derive(Debug)]
struct State {
    stats: Stats,
    condition: Condition,
    /// When the step under way began.
    step_began: Option<Instant>,
}

/// The way to the thread.
pub struct Worker {
    commands: Sender<Command>,
    state: Arc<Mutex<State>>,
    next_ticket: AtomicU64,
    /// Sequences that a client still waits for or reads.
    places_taken: Arc<AtomicUsize>,
    places: usize,
}

/// The right to one sequence, counted until it is dropped.
pub struct Place {
    taken: Arc<AtomicUsize>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A sequence under way. Dropping it cancels what has not been computed.
pub struct Ticket {
    number: u64,
    commands: Sender<Command>,
    _place: Place,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // A thread that has ended has nothing to cancel.
        let _ = self.commands.send(Command::Cancel(self.number));
    }
}

impl Worker {
    /// Starts the thread. `places`: sequences that may run and wait together.
    pub fn start(machine: Machine, places: usize, log: Log) -> (Arc<Worker>, JoinHandle<()>) {
        let (commands, inbox) = channel();
        let state = Arc::new(Mutex::new(State {
            stats: Stats::default(),
            condition: Condition::Starting,
            step_began: None,
        }));
        let worker = Worker {
            commands,
            state: Arc::clone(&state),
            next_ticket: AtomicU64::new(0),
            places_taken: Arc::new(AtomicUsize::new(0)),
            places,
        };
        let thread = std::thread::Builder::new().name("engine".to_string());
        let handle = thread
            .spawn(move || Desk::new(machine, inbox, state, log).run())
            .expect("the system can start one thread");
        (Arc::new(worker), handle)
    }

    /// Places for so many sequences, all or none.
    pub fn reserve(&self, count: usize) -> Option<Vec<Place>> {
        let taken = &self.places_taken;
        let fits = |now: usize| now.checked_add(count).filter(|&sum| sum <= self.places);
        taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
            .ok()?;
        let place = || Place {
            taken: Arc::clone(taken),
        };
        Some(std::iter::repeat_with(place).take(count).collect())
    }

    /// Sequences that may run and wait together.
    pub fn places(&self) -> usize {
        self.places
    }

    pub fn places_taken(&self) -> usize {
        self.places_taken.load(Ordering::Acquire)
    }

    /// Hands a sequence in; its events carry `number`.
    pub fn submit(
        &self,
        submission: Submission,
        number: usize,
        sink: Sink<Numbered>,
        place: Place,
    ) -> Ticket {
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        // If the thread has ended, the sink is dropped here and the reader sees that.
        let _ = self.commands.send(Command::Submit {
            ticket,
            number,
            submission: Box::new(submission),
            sink,
        });
        Ticket {
            number: ticket,
            commands: self.commands.clone(),
            _place: place,
        }
    }

    /// Ends the thread after its present step; all sequences end.
    pub fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
    }

    pub fn stats(&self) -> Stats {
        self.state().stats
    }

    pub fn condition(&self) -> Condition {
        let state = self.state();
        let is_long = |began: Instant| began.elapsed() > LONGEST_STEP;
        match state.condition {
            Condition::Ready if state.step_began.is_some_and(is_long) => Condition::Stuck,
            condition => condition,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Lines for whoever runs the server.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the outputs of a sequence go.
struct Reader {
    ticket: u64,
    number: usize,
    sink: Sink<Numbered>,
}

/// The thread's own side.
struct Desk {
    machine: Machine,
    engine: Engine,
    inbox: Receiver<Command>,
    state: Arc<Mutex<State>>,
    log: Log,
    readers: HashMap<SequenceId, Reader>,
    ids: HashMap<u64, SequenceId>,
    breakdowns: u32,
    /// Steps when unused memory was last given back.
    tidied_at: u64,
}

const SHUT_DOWN: &str = "the server is shutting down";
const BROKEN: &str = "the engine broke down; this is a bug of the server, not of the request";

impl Desk {
    fn new(machine: Machine, inbox: Receiver<Command>, state: Arc<Mutex<State>>, log: Log) -> Desk {
        Desk {
            engine: engine_of(&machine),
            machine,
            inbox,
            state,
            log,
            readers: HashMap::new(),
            ids: HashMap::new(),
            breakdowns: 0,
            tidied_at: 0,
        }
    }

    fn run(mut self) {
        self.warm_up();
        while self.take_commands() && self.step() {}
        let reason = match self.breakdowns {
            0 | 1 => SHUT_DOWN,
            _ => BROKEN,
        };
        self.end_all(reason);
    }

    /// Ready is who has answered once.
    fn warm_up(&mut self) {
        let request = Request {
            sequence: 0,
            prompt: vec![0],
            params: SamplingParams {
                max_tokens: 1,
                ..SamplingParams::default()
            },
        };
        if self.engine.add(request).is_ok() {
            self.step();
        }
        self.engine = engine_of(&self.machine);
        let mut state = lock(&self.state);
        state.stats = self.engine.stats();
        if state.condition == Condition::Starting {
            state.condition = Condition::Ready;
        }
    }

    /// Everything that has come in; waits only while there is nothing to compute. False: stop.
    fn take_commands(&mut self) -> bool {
        let mut command = match self.engine.is_idle() {
            true => match self.wait() {
                Some(command) => Some(command),
                None => return false,
            },
            false => None,
        };
        loop {
            match command.take() {
                Some(Command::Stop) => return false,
                Some(Command::Cancel(ticket)) => {
                    if let Some(id) = self.ids.remove(&ticket) {
                        self.readers.remove(&id);
                        self.engine.cancel(id);
                    }
                }
                Some(Command::Submit {
                    ticket,
                    number,
                    submission,
                    sink,
                }) => self.submit(ticket, number, *submission, sink),
                None => {}
            }
            match self.inbox.try_recv() {
                Ok(next) => command = Some(next),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true
    }

    fn submit(&mut self, ticket: u64, number: usize, submission: Submission, sink: Sink<Numbered>) {
        let event = match self.engine.submit(submission) {
            Ok(id) => {
                let sink = sink.clone();
                self.ids.insert(ticket, id);
                let reader = Reader {
                    ticket,
                    number,
                    sink,
                };
                self.readers.insert(id, reader);
                Event::Accepted
            }
            Err(error) => Event::Refused(error),
        };
        // A reader that is gone cancels by itself.
        let _ = sink.try_send((number, event));
    }

    /// The next command; meanwhile, after work, what it left behind is tidied once.
    fn wait(&mut self) -> Option<Command> {
        match self.inbox.recv_timeout(QUIET) {
            Err(RecvTimeoutError::Timeout) => {}
            heard => return heard.ok(),
        }
        let steps = lock(&self.state).stats.steps;
        if steps != self.tidied_at {
            self.tidied_at = steps;
            kernels::release_unused_memory();
        }
        self.inbox.recv().ok()
    }

    /// One batch. False if the engine is beyond repair.
    fn step(&mut self) -> bool {
        lock(&self.state).step_began = Some(Instant::now());
        let Desk {
            engine, machine, ..
        } = self;
        let advance = || engine.advance(&machine.model, &machine.backend);
        match catch_unwind(AssertUnwindSafe(advance)) {
            Ok(outputs) => outputs.into_iter().for_each(|output| self.deliver(output)),
            Err(panic) => self.recover(panic.as_ref()),
        }
        let mut state = lock(&self.state);
        state.stats = self.engine.stats();
        state.step_began = None;
        if self.breakdowns > 1 {
            state.condition = Condition::Broken;
        }
        self.breakdowns < 2
    }

    fn deliver(&mut self, output: Output) {
        let id = output.id;
        let ends = output.finish_reason.is_some();
        let Some(reader) = self.readers.get(&id) else {
            return;
        };
        let sent = reader.sink.try_send((reader.number, Event::Output(output)));
        if ends || sent.is_err() {
            // Who does not read finds the channel closed without an end.
            self.ids.remove(&reader.ticket);
            self.readers.remove(&id);
            self.engine.cancel(id);
        }
    }

    /// Every sequence under way is lost; the next ones find a new engine, once.
    fn recover(&mut self, panic: &(dyn std::any::Any + Send)) {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("no message");
        (self.log)(&format!("the engine broke down: {text}"));
        self.breakdowns += 1;
        self.end_all(BROKEN);
        self.engine = engine_of(&self.machine);
    }

    fn end_all(&mut self, reason: &'static str) {
        for (_, reader) in self.readers.drain() {
            let _ = reader.sink.try_send((reader.number, Event::Ended(reason)));
        }
        self.ids.clear();
    }
}

fn engine_of(machine: &Machine) -> Engine {
    Engine::new(&machine.model.config, machine.engine)
        .expect("these sizes have made an engine before")
}
