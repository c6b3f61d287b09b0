//! Prompt text out of block ids: equal ids at equal places are equal bytes.
//!
//! A token is a three-letter English word and a space, four bytes, which common tokenisers take for about one token.
//! Nothing is stored: every word follows from the seed, the block's id and the place, so a prompt of a million tokens is
//! written in pieces.

use std::sync::Arc;

use bytes::BytesMut;

use crate::random::{mix, nth};
use crate::trace::Run;

/// Bytes of one word with its space.
pub(crate) const WORD_BYTES: u64 = 4;

/// 256 words, so that one random byte picks one.
const WORDS: &str = "\
    the and for are but not you all any can had her was one our out day get has him his how man new \
    now old see two way who boy did its let put say she too use dad mom act add age ago aid aim air \
    arm art ask bad bag ban bar bat bay bed bee beg bet big bin bit bow box bug bus buy cab cap car \
    cat cow cry cup cut dam den dew dig dim dip dog dot dry due ear eat egg ego elm end era eve eye \
    fan far fat fee few fig fin fit fix fly fog fox fun fur gap gas gem gun gut guy gym ham hat hay \
    hen hex hid hip hit hop hot hub hug ice icy ill ink inn ion ivy jam jar jaw jet job jog joy jug \
    key kid kin kit lab lad lag lap law lay leg lid lie lip log lot low mad map mat may mix mob mud \
    mug nap net nod nor nut oak oar odd off oil orb ore own pad pan paw pay pea peg pen pet pie pig \
    pin pit pot pub rag ram ran rat raw ray red rib rid rig rim rip rob rod rot row rub rug run sad \
    sat saw sea set sew shy sin sip sir sit six sky son sow spy sum sun tab tag tan tap tar tax tea \
    ten tie tin tip toe ton top toy try tub tug van vat vet via war ";

/// How the tokens of a trace map to words of a prompt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// Tokens of one block in the trace.
    pub(crate) block_tokens: u64,
    /// Words per token of the trace, in (0, 1].
    pub(crate) scale: f64,
}

impl Layout {
    /// Words that stand for the first `tokens` tokens of a prompt.
    pub(crate) fn words(self, tokens: u64) -> u64 {
        (tokens as f64 * self.scale) as u64
    }

    /// The word at which a block begins.
    pub(crate) fn start(self, block: u64) -> u64 {
        self.words(block.saturating_mul(self.block_tokens))
    }

    /// The block that holds a word.
    fn block(self, word: u64) -> u64 {
        let mut block = (word as f64 / (self.block_tokens as f64 * self.scale)) as u64;
        // The division may be off by one where it is inexact, and blocks may have no word at all.
        while block > 0 && self.start(block) > word {
            block -= 1;
        }
        while self.start(block + 1) <= word {
            block += 1;
        }
        block
    }
}

/// The text of one prompt.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    pub(crate) seed: u64,
    pub(crate) layout: Layout,
    pub(crate) runs: Arc<Runs>,
    /// Id of all that comes after the runs.
    pub(crate) tail: u64,
}

impl Text {
    /// Appends the words `from..to`.
    pub(crate) fn write(&self, from: u64, to: u64, out: &mut BytesMut) {
        out.reserve((to.saturating_sub(from) * WORD_BYTES) as usize);
        let mut word = from;
        while word < to {
            let block = self.layout.block(word);
            let (start, end) = (self.layout.start(block), self.layout.start(block + 1).min(to));
            let seed = mix(self.seed ^ mix(self.runs.id(block).unwrap_or(self.tail)));
            while word < end {
                // Eight words are one random number.
                let place = word - start;
                let picks = nth(seed, place / 8).to_le_bytes();
                let until = end.min(start + (place / 8 + 1) * 8);
                for pick in &picks[(place % 8) as usize..][..(until - word) as usize] {
                    let at = usize::from(*pick) * WORD_BYTES as usize;
                    out.extend_from_slice(&WORDS.as_bytes()[at..at + WORD_BYTES as usize]);
                }
                word = until;
            }
        }
    }
}

/// Block ids in run-length form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Runs {
    /// Each run with the number of blocks up to its end.
    runs: Vec<(u64, Run)>,
}

impl Runs {
    /// The number of blocks.
    pub(crate) fn len(&self) -> u64 {
        self.runs.last().map_or(0, |(end, _)| *end)
    }

    /// The id at a place.
    pub(crate) fn id(&self, block: u64) -> Option<u64> {
        let at = self.runs.partition_point(|(end, _)| *end <= block);
        self.runs
            .get(at)
            .map(|(end, run)| run.first + (block - (end - run.count)))
    }

    /// Keeps the first `blocks`.
    pub(crate) fn truncate(&mut self, blocks: u64) {
        while let Some((end, run)) = self.runs.last_mut() {
            let before = *end - run.count;
            if before < blocks {
                run.count = run.count.min(blocks - before);
                *end = before + run.count;
                return;
            }
            self.runs.pop();
        }
    }

    /// Appends a run, joined with the last one where the ids go on.
    pub(crate) fn push(&mut self, run: Run) {
        if run.count == 0 {
            return;
        }
        match self.runs.last_mut() {
            Some((end, last)) if last.first + last.count == run.first => {
                last.count += run.count;
                *end += run.count;
            }
            _ => self.runs.push((self.len() + run.count, run)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(runs: &[(u64, u64)], scale: f64) -> Text {
        let mut list = Runs::default();
        for &(first, count) in runs {
            list.push(Run { first, count });
        }
        Text {
            seed: 9,
            layout: Layout {
                block_tokens: 64,
                scale,
            },
            runs: Arc::new(list),
            tail: u64::MAX,
        }
    }

    fn bytes(text: &Text, from: u64, to: u64) -> BytesMut {
        let mut out = BytesMut::new();
        text.write(from, to, &mut out);
        out
    }

    #[test]
    fn the_words_are_256_different_ones() {
        let mut words: Vec<&[u8]> = WORDS.as_bytes().chunks(4).collect();
        assert_eq!(words.len(), 256);
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), 256);
        assert!(
            words
                .iter()
                .all(|word| word[3] == b' ' && word[..3].iter().all(u8::is_ascii_lowercase))
        );
    }

    #[test]
    fn pieces_make_the_same_text_as_the_whole() {
        for scale in [1.0, 0.3, 0.05, 0.01] {
            let text = text(&[(1, 40), (500, 3), (41, 7)], scale);
            let total = text.layout.words(51 * 64);
            let whole = bytes(&text, 0, total);
            assert_eq!(whole.len() as u64, total * WORD_BYTES);
            for step in [1, 7, 8, 63, 1000] {
                let mut pieces = BytesMut::new();
                let mut from = 0;
                while from < total {
                    let to = (from + step).min(total);
                    text.write(from, to, &mut pieces);
                    from = to;
                }
                assert_eq!(pieces, whole, "scale {scale}, step {step}");
            }
        }
    }

    #[test]
    fn equal_blocks_are_equal_bytes_and_others_differ() {
        let (one, other) = (text(&[(1, 10)], 1.0), text(&[(1, 6), (900, 4)], 1.0));
        assert_eq!(bytes(&one, 0, 6 * 64), bytes(&other, 0, 6 * 64));
        assert_ne!(bytes(&one, 6 * 64, 6 * 64 + 8), bytes(&other, 6 * 64, 6 * 64 + 8));
        let mut salted = one.clone();
        salted.seed = 10;
        assert_ne!(bytes(&one, 0, 8), bytes(&salted, 0, 8));
    }

    #[test]
    fn runs_keep_ids_and_merge() {
        let mut runs = Runs::default();
        for (first, count) in [(1, 5), (6, 5), (100, 2), (7, 0)] {
            runs.push(Run { first, count });
        }
        assert_eq!((runs.len(), runs.runs.len()), (12, 2));
        let ids: Vec<Option<u64>> = [0, 9, 10, 11, 12]
            .into_iter()
            .map(|block| runs.id(block))
            .collect();
        assert_eq!(ids, [Some(1), Some(10), Some(100), Some(101), None]);
        runs.truncate(11);
        assert_eq!((runs.len(), runs.id(11)), (11, None));
        runs.truncate(3);
        assert_eq!((runs.len(), runs.id(2), runs.id(3)), (3, Some(3), None));
        runs.truncate(0);
        assert_eq!(runs.len(), 0);
    }
}
