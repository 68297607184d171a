//! Sequences that wait, and whose turn it is.
//!
//! Clients take turns; within a client the oldest comes first. A sequence may be parked until
//! blocks that another computes are there, so that nothing is computed twice.

use crate::request::SequenceId;
use crate::sequence::Sequence;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

#[derive(Default)]
struct Client {
    /// Its sequences that are not parked.
    ready: BTreeSet<SequenceId>,
    /// Whether it is in `turns`; as long as it is, it is not forgotten.
    has_turn: bool,
}

#[derive(Default)]
pub(crate) struct Queue {
    waiting: BTreeMap<SequenceId, Sequence>,
    clients: HashMap<u64, Client>,
    /// Those with ready sequences, and some that have none any more.
    turns: VecDeque<u64>,
    /// Who waits for a block, by the hash of its text.
    parked: HashMap<u64, Vec<SequenceId>>,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes a sequence, before all younger ones of its client.
    pub(crate) fn push(&mut self, sequence: Sequence) {
        let (id, client) = (sequence.id, sequence.client);
        self.waiting.insert(id, sequence);
        if self.make_ready(id, client) {
            self.turns.push_back(client);
        }
    }

    /// As [`push`](Queue::push); if the client has no turn yet, the next is its own.
    pub(crate) fn push_preempted(&mut self, sequence: Sequence) {
        let (id, client) = (sequence.id, sequence.client);
        self.waiting.insert(id, sequence);
        if self.make_ready(id, client) {
            self.turns.push_front(client);
        }
    }

    /// Whether the client has to be given a turn.
    fn make_ready(&mut self, id: SequenceId, client: u64) -> bool {
        let client = self.clients.entry(client).or_default();
        client.ready.insert(id);
        !std::mem::replace(&mut client.has_turn, true)
    }

    /// The sequence whose turn it is.
    pub(crate) fn next(&mut self) -> Option<&mut Sequence> {
        loop {
            let number = *self.turns.front()?;
            let client = self.clients.get(&number).expect("it has a turn");
            if let Some(id) = client.ready.first() {
                let sequence = self.waiting.get_mut(id);
                return Some(sequence.expect("who is ready waits"));
            }
            self.turns.pop_front();
            self.clients.remove(&number);
        }
    }

    /// Takes the sequence whose turn it is out; its client's next turn comes after all others.
    pub(crate) fn take(&mut self) -> Sequence {
        let id = self.next().expect("somebody's turn").id;
        self.turns.rotate_left(1);
        self.remove(id).expect("who is ready waits")
    }

    /// Takes a sequence out wherever it is.
    pub(crate) fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let sequence = self.waiting.remove(&id)?;
        if let Some(client) = self.clients.get_mut(&sequence.client) {
            client.ready.remove(&id);
        }
        Some(sequence)
    }

    /// Passes over the sequence whose turn it is until [`unpark`](Queue::unpark).
    pub(crate) fn park(&mut self, hash: u64) {
        let sequence = self.next().expect("somebody's turn");
        let (id, client) = (sequence.id, sequence.client);
        let client = self.clients.get_mut(&client).expect("it has a turn");
        client.ready.remove(&id);
        self.parked.entry(hash).or_default().push(id);
    }

    /// Those who waited for this block may have their turn again.
    pub(crate) fn unpark(&mut self, hash: u64) {
        for id in self.parked.remove(&hash).unwrap_or_default() {
            // It may have been cancelled meanwhile.
            if let Some(sequence) = self.waiting.get(&id) {
                let client = sequence.client;
                if self.make_ready(id, client) {
                    self.turns.push_back(client);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::SamplingParams;
    use crate::request::{Request, Submission};
    use kernels::{Chance, Purpose};

    fn queue(clients: &[u64]) -> Queue {
        let mut queue = Queue::default();
        clients
            .iter()
            .zip(0..)
            .for_each(|(&client, id)| queue.push(sequence(id, client)));
        queue
    }

    fn sequence(id: u64, client: u64) -> Sequence {
        let request = Request {
            sequence: id,
            prompt: vec![0],
            params: SamplingParams::default(),
        };
        let submission = Submission {
            client,
            ..request.into()
        };
        Sequence::new(submission, SequenceId(id))
    }

    fn rest(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| {
            queue.next()?;
            Some(queue.take().id.0)
        })
        .collect()
    }

    #[test]
    fn clients_take_turns_and_each_has_its_order() {
        let mut queue = queue(&[7, 7, 7, 7, 3, 9, 3]);
        assert_eq!(rest(&mut queue), [0, 4, 5, 1, 6, 2, 3]);
        assert!(queue.is_empty() && queue.turns.is_empty() && queue.clients.is_empty());
    }

    #[test]
    fn who_was_preempted_comes_first_and_who_is_gone_does_not() {
        let mut queue = queue(&[1, 2, 1, 2]);
        queue.push_preempted(sequence(9, 5));
        assert!(queue.remove(SequenceId(0)).is_some());
        assert!(queue.remove(SequenceId(0)).is_none());
        assert_eq!(rest(&mut queue), [9, 2, 1, 3]);
    }

    #[test]
    fn who_is_parked_is_passed_over_until_it_may_go_on() {
        let mut queue = queue(&[1, 1, 1]);
        queue.park(50);
        queue.park(50);
        assert!(queue.remove(SequenceId(1)).is_some());
        assert_eq!(queue.next().map(|s| s.id.0), Some(2));
        assert_eq!(queue.len(), 2);
        queue.unpark(50);
        assert_eq!(rest(&mut queue), [0, 2]);
        assert!(queue.parked.is_empty() && queue.is_empty());
    }

    /// Random comings and goings: of a client the oldest who is not parked is taken, and between
    /// two turns of one client everybody who was ready all the time had a turn.
    #[test]
    fn no_client_has_two_turns_while_another_waits() {
        for seed in 0..100 {
            let mut draw = Chance::new(seed, Purpose::Problem).draws(1);
            let mut queue = Queue::default();
            let mut ready: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
            let mut parked: Vec<(u64, u64, u64)> = Vec::new();
            // When a client was last without a ready sequence, and when it last had a turn.
            let (mut bare, mut turn) = ([0; 5], [0; 5]);
            for time in 1..400 {
                match draw(8) {
                    0..3 => {
                        let client = draw(5);
                        queue.push(sequence(time, client));
                        ready.entry(client).or_default().insert(time);
                    }
                    3 => {
                        let hash = draw(3);
                        queue.unpark(hash);
                        for (_, client, id) in parked.extract_if(.., |p| p.0 == hash) {
                            ready.entry(client).or_default().insert(id);
                        }
                    }
                    4 => {
                        let id = draw(time);
                        let was_ready = ready.values_mut().any(|ids| ids.remove(&id));
                        let was_parked = parked.extract_if(.., |p| p.2 == id).count() > 0;
                        let removed = queue.remove(SequenceId(id)).is_some();
                        assert_eq!(removed, was_ready || was_parked, "seed {seed}");
                    }
                    what => {
                        let Some(next) = queue.next() else {
                            assert!(ready.values().all(BTreeSet::is_empty), "seed {seed}");
                            continue;
                        };
                        let (id, client) = (next.id.0, next.client);
                        let ids = ready.entry(client).or_default();
                        assert_eq!(ids.pop_first(), Some(id), "seed {seed}");
                        if what == 5 {
                            let hash = draw(3);
                            queue.park(hash);
                            parked.push((hash, client, id));
                        } else {
                            assert_eq!(queue.take().id.0, id);
                            let before = turn[client as usize];
                            for other in (0..5).filter(|&other| other != client as usize) {
                                let waited = bare[other] < before;
                                assert!(!waited || turn[other] > before, "seed {seed}");
                            }
                            turn[client as usize] = time;
                        }
                    }
                }
                for (client, bare) in bare.iter_mut().enumerate() {
                    if ready.get(&(client as u64)).is_none_or(BTreeSet::is_empty) {
                        *bare = time;
                    }
                }
                let waiting = ready.values().map(BTreeSet::len).sum::<usize>() + parked.len();
                assert_eq!(queue.len(), waiting, "seed {seed}");
            }
        }
    }
}
