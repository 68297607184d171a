use super::*;
use crate::config::Speculation;
use crate::output::ScoredToken;
use crate::params::SamplingParams;
use crate::request::{Request, Submission};
use kernels::{Chance, Purpose};
use std::collections::BTreeSet;

fn submission(prompt: Vec<u32>, max_tokens: usize) -> Submission {
    let params = SamplingParams {
        max_tokens,
        ..SamplingParams::default()
    };
    let request = Request {
        sequence: 0,
        prompt,
        params,
    };
    request.into()
}

fn add(scheduler: &mut Scheduler, id: u64, prompt_tokens: usize, max_tokens: usize) {
    let submission = submission(vec![1; prompt_tokens], max_tokens);
    scheduler.add(Sequence::new(submission, SequenceId(id)));
}

fn config(num_blocks: usize, block_size: usize, seqs: usize, tokens: usize) -> EngineConfig {
    EngineConfig {
        max_num_seqs: seqs,
        max_num_batched_tokens: tokens,
        block_size,
        num_blocks,
        prefix_caching: false,
        speculation: Speculation::default(),
    }
}

fn plain(num_blocks: usize, block_size: usize, seqs: usize, tokens: usize) -> Scheduler {
    Scheduler::new(config(num_blocks, block_size, seqs, tokens))
}

/// Computes the batch as an engine would; `token` says what is sampled after a text.
fn compute(scheduler: &mut Scheduler, token: impl Fn(&Sequence) -> u32) -> Vec<Sequence> {
    for chunk in scheduler.chunks.clone() {
        let sequence = &mut scheduler.running[chunk.index];
        sequence.num_computed += chunk.tokens;
        if sequence.num_uncomputed() > 0 {
            continue;
        }
        let drafts = sequence.drafts.token_ids.clone();
        assert_eq!(drafts.len(), chunk.drafts);
        let mut accepted = 0;
        loop {
            let token_id = token(sequence);
            sequence.push(ScoredToken {
                token_id,
                logprob: 0.0,
                top: Vec::new(),
            });
            if drafts.get(accepted) != Some(&token_id) {
                break;
            }
            accepted += 1;
            sequence.num_computed += 1;
            if sequence.finish_reason.is_some() {
                break;
            }
        }
        sequence.note_drafts(accepted);
        scheduler.stats.accepted_draft_tokens += accepted as u64;
    }
    scheduler.settle();
    scheduler.retire()
}

/// Tokens count up within a sequence.
fn count_up(sequence: &Sequence) -> u32 {
    sequence.num_sampled() as u32
}

fn chunks(scheduler: &Scheduler) -> Vec<(usize, usize)> {
    let pair = |chunk: &Chunk| (chunk.index, chunk.tokens);
    scheduler.chunks.iter().map(pair).collect()
}

#[test]
fn prompts_are_chunked_beside_decodes() {
    let mut scheduler = plain(100, 4, 8, 8);
    for (id, prompt_tokens) in [4, 20, 2].into_iter().enumerate() {
        add(&mut scheduler, id as u64, prompt_tokens, 10);
    }
    let mut batches = Vec::new();
    for _ in 0..5 {
        scheduler.schedule();
        batches.push(chunks(&scheduler));
        compute(&mut scheduler, count_up);
    }
    // One token each; of the five left one to the oldest, then to those that need the least.
    let expected: [&[(usize, usize)]; 5] = [
        &[(0, 4), (1, 2), (2, 2)],
        &[(0, 1), (1, 6), (2, 1)],
        &[(0, 1), (1, 6), (2, 1)],
        &[(0, 1), (1, 6), (2, 1)],
        &[(0, 1), (1, 1), (2, 1)],
    ];
    assert_eq!(batches, expected);
}

#[test]
fn a_short_prompt_does_not_wait_for_the_end_of_a_long_one() {
    let mut scheduler = plain(1000, 4, 8, 16);
    add(&mut scheduler, 0, 2000, 1);
    scheduler.schedule();
    compute(&mut scheduler, count_up);
    add(&mut scheduler, 1, 12, 1);
    scheduler.schedule();
    assert_eq!(chunks(&scheduler), [(0, 4), (1, 12)]);
    assert_eq!(compute(&mut scheduler, count_up)[0].id, SequenceId(1));
    // Nor does the long one starve behind many short ones.
    let before = scheduler.running[0].num_computed;
    for id in 2..40 {
        add(&mut scheduler, id, 16, 1);
    }
    for _ in 0..20 {
        scheduler.schedule();
        compute(&mut scheduler, count_up);
    }
    let long = &scheduler.running[0];
    assert_eq!(long.id, SequenceId(0));
    assert!(long.num_computed >= before + 20 * 16 / SHARE_OF_OLDEST / 2);
}

#[test]
fn the_youngest_gives_its_blocks_and_keeps_its_tokens() {
    // Two prompts of a block each, and one block to spare: both want it at once.
    let mut scheduler = plain(4, 2, 8, 100);
    add(&mut scheduler, 0, 2, 5);
    add(&mut scheduler, 1, 1, 5);
    scheduler.schedule();
    assert_eq!(chunks(&scheduler), [(0, 2), (1, 1)]);
    let mut finished = Vec::new();
    let mut preempted_with = None;
    while !scheduler.is_idle() {
        finished.extend(compute(&mut scheduler, count_up));
        let before = scheduler.stats.preemptions;
        scheduler.schedule();
        if scheduler.stats.preemptions > before {
            let victim = scheduler.queue.next().expect("it waits");
            assert_eq!((victim.id.0, victim.num_computed), (1, 0));
            assert!(victim.block_table.is_empty());
            preempted_with = Some(victim.num_sampled());
        }
    }
    assert!(preempted_with > Some(0), "preempted: {preempted_with:?}");
    for (id, sequence) in finished.into_iter().enumerate() {
        assert_eq!(sequence.id.0, id as u64);
        assert_eq!(sequence.into_completion().token_ids, [0, 1, 2, 3, 4]);
    }
    assert_eq!(scheduler.blocks.num_free(), 4);
}

#[test]
fn who_was_preempted_finds_its_blocks_again() {
    let sizes = EngineConfig {
        prefix_caching: true,
        ..config(8, 2, 8, 100)
    };
    let mut scheduler = Scheduler::new(sizes);
    for (id, prompt) in [(0, vec![1, 2]), (1, vec![3, 4, 5, 6, 7])] {
        let submission = submission(prompt, 10);
        scheduler.add(Sequence::new(submission, SequenceId(id)));
    }
    let mut victim = None;
    while !scheduler.is_idle() {
        let before = scheduler.stats.preemptions;
        scheduler.schedule();
        if scheduler.stats.preemptions > before {
            victim = scheduler.queue.next().map(|s| s.token_ids.len());
        } else if let (Some(tokens), 1) = (victim, scheduler.running.last().unwrap().id.0) {
            let computed = scheduler.running.last().unwrap().num_computed;
            assert!(computed > 0 && computed < tokens, "{computed} of {tokens}");
            return;
        }
        compute(&mut scheduler, count_up);
    }
    panic!("nobody was preempted");
}

#[test]
fn a_newcomer_leaves_room_to_grow() {
    // Two of these fit side by side only until the first grows.
    let mut scheduler = plain(4, 2, 8, 100);
    (0..2).for_each(|id| add(&mut scheduler, id, 4, 3));
    let mut finished = 0;
    while !scheduler.is_idle() {
        scheduler.schedule();
        assert_eq!(scheduler.running.len(), 1);
        finished += compute(&mut scheduler, count_up).len();
    }
    assert_eq!((finished, scheduler.stats.preemptions), (2, 0));
    // Small ones do run together.
    (2..4).for_each(|id| add(&mut scheduler, id, 1, 2));
    scheduler.schedule();
    assert_eq!(scheduler.running.len(), 2);
}

#[test]
fn one_client_s_many_requests_do_not_hold_up_another_s() {
    let mut scheduler = plain(100, 4, 2, 100);
    for id in 0..50 {
        add(&mut scheduler, id, 5, 3);
    }
    scheduler.schedule();
    let submission = Submission {
        client: 1,
        ..submission(vec![1; 5], 3)
    };
    scheduler.add(Sequence::new(submission, SequenceId(50)));
    let mut order = Vec::new();
    while !scheduler.is_idle() {
        order.extend(compute(&mut scheduler, count_up).iter().map(|s| s.id.0));
        scheduler.schedule();
    }
    // Two run, one more of the first client has its turn, then the second client.
    assert!(
        order.iter().position(|&id| id == 50) <= Some(3),
        "{order:?}"
    );
}

#[test]
fn nothing_is_computed_twice_for_many_choices_of_one_prompt() {
    let sizes = EngineConfig {
        prefix_caching: true,
        ..config(100, 4, 16, 6)
    };
    let mut scheduler = Scheduler::new(sizes);
    let prompt: Vec<u32> = (0..18).collect();
    for id in 0..10 {
        let submission = submission(prompt.clone(), 3);
        scheduler.add(Sequence::new(submission, SequenceId(id)));
    }
    // Another's request is not held up by those that wait.
    add(&mut scheduler, 10, 3, 3);
    let (mut computed, mut steps) = (0, 0);
    while !scheduler.is_idle() {
        scheduler.schedule();
        if steps == 0 {
            assert_eq!(scheduler.running.len(), 2);
        }
        let prompts = scheduler.chunks.iter().filter(|chunk| {
            let sequence = &scheduler.running[chunk.index];
            sequence.num_sampled() == 0 && sequence.id.0 < 10
        });
        computed += prompts.map(|chunk| chunk.tokens).sum::<usize>();
        compute(&mut scheduler, count_up);
        steps += 1;
    }
    assert_eq!(
        computed,
        18 + 9 * 2,
        "the prompt, then only what fills no block"
    );
    assert_eq!(scheduler.stats.cached_tokens, 9 * 16);
    assert_eq!(scheduler.stats.prompt_tokens, 10 * 18 + 3);
    assert!(scheduler.announced.is_empty());
}

#[test]
fn who_waits_for_blocks_goes_on_when_their_sequence_is_cancelled() {
    let sizes = EngineConfig {
        prefix_caching: true,
        ..config(100, 4, 16, 6)
    };
    let mut scheduler = Scheduler::new(sizes);
    for id in 0..3 {
        let submission = submission((0..18).collect(), 3);
        scheduler.add(Sequence::new(submission, SequenceId(id)));
    }
    scheduler.schedule();
    compute(&mut scheduler, count_up);
    assert_eq!((scheduler.running.len(), scheduler.queue.len()), (1, 2));
    assert!(scheduler.cancel(SequenceId(0)));
    assert!(!scheduler.cancel(SequenceId(0)));
    scheduler.schedule();
    // One block was there already.
    assert_eq!(scheduler.running[0].num_computed, 4);
    let mut finished = 0;
    while !scheduler.is_idle() {
        finished += compute(&mut scheduler, count_up).len();
        scheduler.schedule();
    }
    assert_eq!((finished, scheduler.announced.len()), (2, 0));
}

/// The cache as the scheduler's orders fill it: of each row, the salt and text whose latents it
/// holds.
struct Cache {
    rows: Vec<(u64, u64)>,
    seed: u64,
}

/// A number for the text up to each position.
fn texts(token_ids: &[u32]) -> Vec<u64> {
    let mut hashes = Vec::new();
    hash_blocks(5, token_ids, 1, &mut hashes);
    hashes
}

impl Cache {
    /// What must hold of every batch; then it is written.
    fn check(&mut self, scheduler: &Scheduler) {
        let seed = self.seed;
        let blocks = &scheduler.blocks;
        let tokens = scheduler.chunks.iter().map(|c| c.tokens + c.drafts);
        let tokens: usize = tokens.sum();
        assert!(tokens > 0, "seed {seed}: an empty batch");
        assert!(
            tokens <= scheduler.config.max_num_batched_tokens,
            "seed {seed}"
        );
        assert!(
            scheduler.running.len() <= scheduler.max_running,
            "seed {seed}"
        );
        assert!(scheduler.running.is_sorted_by_key(|s| s.id), "seed {seed}");
        let parts: Vec<usize> = scheduler.chunks.iter().map(|chunk| chunk.index).collect();
        let all: Vec<usize> = (0..scheduler.running.len()).collect();
        assert_eq!(parts, all, "seed {seed}: everybody has a part");
        let mut owners = vec![0; blocks.num_blocks()];
        for &block in scheduler.running.iter().flat_map(|s| &s.block_table) {
            owners[block as usize] += 1;
        }
        assert_eq!(blocks.owners(), owners, "seed {seed}");
        let owned = owners.iter().filter(|&&owners| owners > 0).count();
        assert_eq!(
            owned + blocks.num_free(),
            blocks.num_blocks(),
            "seed {seed}: leak"
        );
        for chunk in &scheduler.chunks {
            self.check_chunk(scheduler, chunk);
        }
    }

    fn check_chunk(&mut self, scheduler: &Scheduler, chunk: &Chunk) {
        let (seed, blocks) = (self.seed, &scheduler.blocks);
        let sequence = &scheduler.running[chunk.index];
        assert!(chunk.tokens > 0 && chunk.tokens <= sequence.num_uncomputed());
        let drafts = &sequence.drafts.token_ids;
        assert_eq!(drafts.len(), chunk.drafts, "seed {seed}");
        let text = texts(&[&sequence.token_ids[..], drafts].concat());
        let start = sequence.num_computed;
        let end = start + chunk.tokens + chunk.drafts;
        for (position, &text) in text.iter().enumerate().take(end) {
            let row = blocks.slot(&sequence.block_table, position) as usize;
            let held = (sequence.cache_salt, text);
            if position < start {
                assert_eq!(self.rows[row], held, "seed {seed}: another's latents");
            } else {
                let block = sequence.block_table[position / blocks.block_size()];
                assert!(
                    blocks.is_private(block),
                    "seed {seed}: a shared block is written"
                );
                self.rows[row] = held;
            }
        }
    }
}

/// A small world of requests that begin alike, of several clients and salts.
fn random_submission(draw: &mut impl FnMut(u64) -> u64) -> Submission {
    let prompt_tokens = 1 + draw(20);
    let ids = 1 + draw(2);
    let prompt = (0..prompt_tokens).map(|_| draw(ids) as u32).collect();
    let mut submission = submission(prompt, 1 + draw(20) as usize);
    submission.cache_salt = draw(2);
    submission.client = draw(3);
    if draw(8) == 0 {
        submission.prompt_logprobs = Some(0);
    }
    submission
}

/// Random requests, arriving and being cancelled as others run, in caches of every size that can
/// hold them.
#[test]
fn every_sequence_finishes_on_its_own_latents_and_no_block_is_lost() {
    let mut totals = Stats::default();
    for seed in 0..400 {
        let mut draw = Chance::new(seed, Purpose::Problem).draws(1);
        let block_size = 1 + draw(6) as usize;
        let longest = 40;
        let num_blocks = longest / block_size + 1 + draw(20) as usize;
        let mut sizes = config(
            num_blocks,
            block_size,
            1 + draw(8) as usize,
            1 + draw(30) as usize,
        );
        sizes.prefix_caching = draw(4) > 0;
        sizes.speculation = Speculation {
            prompt_lookup: draw(2) as usize * draw(9) as usize,
            mtp: false,
            max_num_seqs: draw(9) as usize,
        };
        let mut scheduler = Scheduler::new(sizes);
        let rows = vec![(0, 0); num_blocks * block_size];
        let mut cache = Cache { rows, seed };
        let token =
            |sequence: &Sequence| (texts(&sequence.token_ids).last().unwrap() >> 40) as u32 % 2;
        let (total, mut arrived, mut steps) = (40, 0, 0);
        let mut unfinished = BTreeSet::new();
        while arrived < total || !unfinished.is_empty() {
            while arrived < total && (scheduler.is_idle() || draw(3) > 0) {
                let id = SequenceId(arrived);
                scheduler.add(Sequence::new(random_submission(&mut draw), id));
                unfinished.insert(id);
                arrived += 1;
            }
            if draw(10) == 0 {
                let id = SequenceId(draw(arrived));
                assert_eq!(scheduler.cancel(id), unfinished.remove(&id), "seed {seed}");
                if scheduler.is_idle() {
                    continue;
                }
            }
            scheduler.schedule();
            cache.check(&scheduler);
            for sequence in compute(&mut scheduler, token) {
                assert!(sequence.block_table.is_empty(), "seed {seed}");
                assert!(unfinished.remove(&sequence.id), "seed {seed}");
                assert_eq!(sequence.num_sampled(), sequence.params.max_tokens);
            }
            steps += 1;
            assert!(steps < 10_000, "seed {seed}: no end in sight");
        }
        assert!(
            scheduler.is_idle() && scheduler.announced.is_empty(),
            "seed {seed}"
        );
        let stats = scheduler.stats();
        assert_eq!((stats.running, stats.waiting), (0, 0));
        assert_eq!(stats.free_blocks, num_blocks, "seed {seed}: leak");
        assert!(
            stats.cached_blocks == 0 || sizes.prefix_caching,
            "seed {seed}"
        );
        totals.preemptions += stats.preemptions;
        totals.cached_tokens += stats.cached_tokens;
        totals.draft_tokens += stats.draft_tokens;
        totals.accepted_draft_tokens += stats.accepted_draft_tokens;
    }
    println!("{totals:?}");
    assert!(
        totals.preemptions > 100 && totals.cached_tokens > 1000,
        "{totals:?}"
    );
    assert!(totals.accepted_draft_tokens > 300, "{totals:?}");
    assert!(
        totals.draft_tokens > totals.accepted_draft_tokens + 300,
        "{totals:?}"
    );
}
