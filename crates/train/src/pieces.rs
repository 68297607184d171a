//! Whole documents packed into pieces, each piece one forward and backward.
//!
//! Documents of a piece do not see each other (`cu_seqlens` parts them). Pieces are filled in
//! order, so which documents share a piece depends on the documents alone, never on the machine.

use model::{Batch, Targets};

use crate::examples::Example;

/// One packed batch, and which of its tokens are learnt.
pub struct Piece {
    pub batch: Batch,
    pub targets: Targets,
    /// The targets of all pieces of a step form one list; this piece's begin here.
    pub first_target: usize,
}

impl Piece {
    /// This piece's part of a list that has one entry per target of the step.
    pub fn of<'a, T>(&self, whole: &'a [T]) -> &'a [T] {
        &whole[self.first_target..self.first_target + self.targets.rows.len()]
    }

    pub fn documents(&self) -> usize {
        self.batch.context_lens.len()
    }

    /// The token behind each, for multi-token prediction; the last of a document has none, and
    /// what stands there says nothing.
    pub fn next_token_ids(&self) -> Vec<u32> {
        let own = &self.batch.token_ids;
        let mut next = own[1..].to_vec();
        next.push(0);
        // Whatever stands there is routed and counted: let it not depend on the packing.
        for &end in &self.batch.cu_seqlens[1..] {
            next[end as usize - 1] = own[end as usize - 1];
        }
        next
    }

    /// The learnt tokens as multi-token prediction sees them: each two behind its row, so without
    /// the second token of a document.
    pub fn targets_two_ahead(&self) -> Targets {
        let starts = &self.batch.cu_seqlens;
        let own = self.targets.rows.iter().zip(&self.targets.token_ids);
        let inside = own.filter(|(row, _)| starts.binary_search(row).is_err());
        let (rows, token_ids) = inside.map(|(&row, &id)| (row - 1, id)).unzip();
        Targets { rows, token_ids }
    }
}

/// Packs documents in order into pieces of at most `piece_tokens` tokens; a longer document has a
/// piece to itself. Targets are the completions' tokens, with `prompts` also the prompts' (but the
/// first, which nothing precedes).
pub fn pack(documents: &[Example], piece_tokens: usize, prompts: bool) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut first_target = 0;
    let mut rest = documents;
    while !rest.is_empty() {
        let (these, others) = rest.split_at(fitting(rest, piece_tokens));
        let piece = piece(these, prompts, first_target);
        first_target += piece.targets.rows.len();
        pieces.push(piece);
        rest = others;
    }
    pieces
}

/// How many of the first documents share a piece.
fn fitting(documents: &[Example], piece_tokens: usize) -> usize {
    let mut tokens = 0;
    let fits = |document: &&Example| {
        tokens += document.token_ids.len();
        tokens <= piece_tokens
    };
    documents.iter().take_while(fits).count().max(1)
}

fn piece(documents: &[Example], prompts: bool, first_target: usize) -> Piece {
    let ids: Vec<&[u32]> = documents
        .iter()
        .map(|document| document.token_ids.as_slice())
        .collect();
    let mut targets = Targets {
        rows: Vec::new(),
        token_ids: Vec::new(),
    };
    let mut start = 0;
    for document in documents {
        let first = if prompts {
            1
        } else {
            document.prompt_len.max(1)
        };
        for (place, &id) in document.token_ids.iter().enumerate().skip(first) {
            targets.rows.push((start + place - 1) as u32);
            targets.token_ids.push(id);
        }
        start += document.token_ids.len();
    }
    Piece {
        batch: Batch::documents(&ids),
        targets,
        first_target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(shapes: &[(usize, usize)]) -> Vec<Example> {
        let mut next = 0;
        let mut document = |&(prompt_len, len): &(usize, usize)| {
            next += 100;
            Example {
                token_ids: (next..next + len as u32).collect(),
                prompt_len,
            }
        };
        shapes.iter().map(&mut document).collect()
    }

    #[test]
    fn documents_stay_whole_and_in_order() {
        let documents = documents(&[(2, 5), (1, 4), (2, 3), (1, 20), (1, 2)]);
        let pieces = pack(&documents, 9, false);
        let shape: Vec<&[u32]> = pieces
            .iter()
            .map(|p| p.batch.cu_seqlens.as_slice())
            .collect();
        assert_eq!(shape, [&[0, 5, 9][..], &[0, 3], &[0, 20], &[0, 2]]);
        let ids: Vec<u32> = pieces
            .iter()
            .flat_map(|p| p.batch.token_ids.clone())
            .collect();
        assert_eq!(
            ids,
            documents
                .iter()
                .flat_map(|d| d.token_ids.clone())
                .collect::<Vec<_>>()
        );
        assert_eq!(pieces[0].batch.positions, [0, 1, 2, 3, 4, 0, 1, 2, 3]);
    }

    #[test]
    fn each_target_is_the_token_after_its_row() {
        let documents = documents(&[(2, 5), (1, 4), (3, 6)]);
        for prompts in [false, true] {
            let pieces = pack(&documents, 10, prompts);
            let mut expected_first = 0;
            for piece in &pieces {
                assert_eq!(piece.first_target, expected_first);
                expected_first += piece.targets.rows.len();
                for (&row, &id) in piece.targets.rows.iter().zip(&piece.targets.token_ids) {
                    assert_eq!(piece.batch.token_ids[row as usize] + 1, id);
                }
            }
            let expected: usize = documents
                .iter()
                .map(|d| d.token_ids.len() - if prompts { 1 } else { d.prompt_len })
                .sum();
            assert_eq!(expected_first, expected);
        }
        assert_eq!(
            pack(&documents, 10, false)[0].targets.rows,
            [1, 2, 3, 5, 6, 7]
        );
    }

    #[test]
    fn two_ahead_is_the_token_after_the_next_of_the_same_document() {
        let documents = documents(&[(2, 5), (1, 4), (1, 2)]);
        let piece = &pack(&documents, 20, false)[0];
        let next = piece.next_token_ids();
        assert_eq!(next.len(), piece.batch.tokens());
        let targets = piece.targets_two_ahead();
        // Learnt tokens stand at 2, 3, 4 of the first document, at 1, 2, 3 of the second and at 1
        // of the third; the second token of a document has nothing two before it.
        assert_eq!(targets.rows, [0, 1, 2, 5, 6]);
        for (&row, &id) in targets.rows.iter().zip(&targets.token_ids) {
            assert_eq!(piece.batch.token_ids[row as usize] + 2, id);
            assert_eq!(next[row as usize] + 1, id);
        }
    }
}
