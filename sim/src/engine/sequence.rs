//! One sequence: what was asked, what is computed, which blocks hold it.

use std::time::Duration;

use super::{
    blocks::BlockId,
    script::Script,
    tokens::{Token, hash_tokens},
};

/// Names a sequence: the request it belongs to and which of its choices it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId {
    /// Number of the HTTP request.
    pub job: u64,
    /// Index among the request's choices.
    pub choice: u32,
}

/// One sequence to run. Times count from the engine's start.
#[derive(Debug, Clone)]
pub struct Request {
    /// Must be new to the engine.
    pub id: SequenceId,
    /// At least one token.
    pub prompt: Vec<Token>,
    /// Separates prefix caches; 0 = the shared one.
    pub salt: u64,
    /// What it will say, at least one token.
    pub script: Script,
    /// Lower runs first; only under [`super::Policy::Priority`].
    pub priority: i64,
    /// When the front end received the request.
    pub arrived: Duration,
    /// The request's `max_tokens` and `n`, for the statistics.
    pub asked: Asked,
}

/// Parameters that only appear in statistics.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked {
    /// `max_tokens` after clipping.
    pub max_tokens: u32,
    /// `n`.
    pub choices: u32,
}

/// Order among the waiting: smallest first.
pub(super) type WaitKey = (i64, i64);

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) request: Request,
    /// Prompt and output so far.
    pub(super) tokens: Vec<Token>,
    pub(super) prompt_len: usize,
    /// Tokens whose KV is in `blocks`.
    pub(super) computed: usize,
    pub(super) blocks: Vec<BlockId>,
    /// Leading blocks of `blocks` that are findable.
    registered: usize,
    /// Chained content hash of each full block of `tokens`, filled as far as needed.
    hashes: Vec<u64>,
    pub(super) key: WaitKey,
    pub(super) arrival: u64,
    pub(super) preemptions: u32,
    /// Prompt tokens found in the cache at the first scheduling.
    pub(super) cached: Option<usize>,
    pub(super) queued: Duration,
    pub(super) scheduled: Option<Duration>,
    pub(super) first_token: Option<Duration>,
    pub(super) last_token: Duration,
}

impl Sequence {
    pub(super) fn new(mut request: Request, key: WaitKey, arrival: u64, now: Duration) -> Self {
        let tokens = std::mem::take(&mut request.prompt);
        Self {
            prompt_len: tokens.len(),
            tokens,
            computed: 0,
            blocks: Vec::new(),
            registered: 0,
            hashes: Vec::new(),
            key,
            arrival,
            preemptions: 0,
            cached: None,
            queued: now,
            scheduled: None,
            first_token: None,
            last_token: now,
            request,
        }
    }

    /// Output tokens so far.
    pub(super) fn produced(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Tokens not computed yet.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Content hashes of the blocks that a cache lookup may use: all full blocks short of the last token, because
    /// a fully cached prompt must still compute something.
    pub(super) fn lookup_hashes(&mut self, block_size: usize) -> &[u64] {
        let count = (self.tokens.len() - 1) / block_size;
        self.hash_to(count, block_size);
        &self.hashes[..count]
    }

    /// Blocks that became full with the first `computed` tokens and are not findable yet, with their hashes.
    pub(super) fn newly_full(&mut self, computed: usize, block_size: usize) -> Vec<(BlockId, u64)> {
        let full = computed / block_size;
        self.hash_to(full, block_size);
        let fresh = self.registered..full.max(self.registered);
        self.registered = fresh.end;
        fresh
            .map(|index| (self.blocks[index], self.hashes[index]))
            .collect()
    }

    /// Starts from blocks found in the cache.
    pub(super) fn start_from(&mut self, hit: Vec<BlockId>, block_size: usize) {
        self.computed = hit.len() * block_size;
        self.registered = hit.len();
        self.blocks = hit;
    }

    /// Gives its blocks back and forgets what was computed (recompute, never swap).
    pub(super) fn forget(&mut self) -> Vec<BlockId> {
        self.computed = 0;
        self.registered = 0;
        std::mem::take(&mut self.blocks)
    }

    fn hash_to(&mut self, count: usize, block_size: usize) {
        while self.hashes.len() < count {
            let index = self.hashes.len();
            let parent = self.hashes.last().copied().unwrap_or(self.request.salt);
            let block = &self.tokens[index * block_size..(index + 1) * block_size];
            self.hashes.push(hash_tokens(parent, block));
        }
    }
}
