//! The KV block pool: reference counts, the index of full blocks by content hash, and the free list whose head is
//! the next victim (vLLM's `BlockPool`, `engine-interface.md` §5.1).

use std::collections::HashMap;

/// A block of the pool; 0 is the null block, which is never handed out.
pub(super) type BlockId = u32;

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Block {
    references: u32,
    /// Content hash under which the index finds this block; `None` = not in the index.
    hash: Option<u64>,
    /// Neighbours in the free list, only meaningful while `references` is 0.
    previous: u32,
    next: u32,
}

/// Blocks of KV cache. A block is referenced by sequences, or sits in the free list (with its content still
/// findable), never both.
#[derive(Debug)]
pub(super) struct BlockPool {
    blocks: Vec<Block>,
    index: HashMap<u64, BlockId>,
    head: u32,
    tail: u32,
    free: usize,
    caching: bool,
}

impl BlockPool {
    /// A pool of `total` blocks, the null block among them; `caching` false = nothing is ever found again.
    pub(super) fn new(total: u32, caching: bool) -> Self {
        let empty = Block {
            references: 0,
            hash: None,
            previous: NONE,
            next: NONE,
        };
        let mut pool = Self {
            blocks: vec![empty; total.max(1) as usize],
            index: HashMap::new(),
            head: NONE,
            tail: NONE,
            free: 0,
            caching,
        };
        pool.blocks[0].references = 1;
        for id in 1..total {
            pool.append(id);
        }
        pool
    }

    /// Blocks that sequences can use (the null block is not one).
    pub(super) fn usable(&self) -> usize {
        self.blocks.len() - 1
    }

    /// Blocks no sequence references; cached content counts as free.
    pub(super) fn free(&self) -> usize {
        self.free
    }

    /// Share of usable blocks that are referenced, 0 to 1.
    pub(super) fn usage(&self) -> f64 {
        if self.usable() == 0 {
            return 0.0;
        }
        (self.usable() - self.free) as f64 / self.usable() as f64
    }

    /// The longest run of cached blocks for a chain of content hashes.
    pub(super) fn lookup(&self, hashes: &[u64]) -> Vec<BlockId> {
        if !self.caching {
            return Vec::new();
        }
        hashes
            .iter()
            .map_while(|hash| self.index.get(hash).copied())
            .collect()
    }

    /// How many of `blocks` sit in the free list, and would leave it when referenced.
    pub(super) fn unreferenced(&self, blocks: &[BlockId]) -> usize {
        blocks
            .iter()
            .filter(|id| self.blocks[**id as usize].references == 0)
            .count()
    }

    /// References cached blocks found by [`Self::lookup`].
    pub(super) fn reference(&mut self, blocks: &[BlockId]) {
        for &id in blocks {
            if self.blocks[id as usize].references == 0 {
                self.unlink(id);
            }
            self.blocks[id as usize].references += 1;
        }
    }

    /// Takes `count` blocks from the head of the free list into `into`, evicting their content. All or nothing.
    pub(super) fn allocate(&mut self, count: usize, into: &mut Vec<BlockId>) -> bool {
        if count > self.free {
            return false;
        }
        for _ in 0..count {
            let id = self.head;
            self.unlink(id);
            let block = &mut self.blocks[id as usize];
            block.references = 1;
            if let Some(hash) = block.hash.take() {
                self.index.remove(&hash);
            }
            into.push(id);
        }
        true
    }

    /// Makes a full block findable by its content. A block whose content is already indexed stays anonymous.
    pub(super) fn register(&mut self, id: BlockId, hash: u64) {
        if self.caching && !self.index.contains_key(&hash) {
            self.index.insert(hash, id);
            self.blocks[id as usize].hash = Some(hash);
        }
    }

    /// Drops one reference to each block, last block first, so that the end of a chain is evicted before its start.
    /// Findable blocks go to the tail of the free list, anonymous ones to its head.
    pub(super) fn release(&mut self, blocks: &[BlockId]) {
        for &id in blocks.iter().rev() {
            let block = &mut self.blocks[id as usize];
            debug_assert!(block.references > 0, "block {id} released twice");
            block.references -= 1;
            if block.references == 0 {
                if block.hash.is_some() {
                    self.append(id);
                } else {
                    self.prepend(id);
                }
            }
        }
    }

    /// Forgets all cached content; refused (false) while any block is referenced.
    pub(super) fn reset(&mut self) -> bool {
        if self.free != self.usable() {
            return false;
        }
        self.index.clear();
        for block in &mut self.blocks {
            block.hash = None;
        }
        true
    }

    fn append(&mut self, id: BlockId) {
        let tail = self.tail;
        let block = &mut self.blocks[id as usize];
        block.previous = tail;
        block.next = NONE;
        if tail == NONE {
            self.head = id;
        } else {
            self.blocks[tail as usize].next = id;
        }
        self.tail = id;
        self.free += 1;
    }

    fn prepend(&mut self, id: BlockId) {
        let head = self.head;
        let block = &mut self.blocks[id as usize];
        block.previous = NONE;
        block.next = head;
        if head == NONE {
            self.tail = id;
        } else {
            self.blocks[head as usize].previous = id;
        }
        self.head = id;
        self.free += 1;
    }

    fn unlink(&mut self, id: BlockId) {
        let Block { previous, next, .. } = self.blocks[id as usize];
        if previous == NONE {
            self.head = next;
        } else {
            self.blocks[previous as usize].next = next;
        }
        if next == NONE {
            self.tail = previous;
        } else {
            self.blocks[next as usize].previous = previous;
        }
        self.free -= 1;
    }

    /// Fails the test when a block is lost, doubled, or findable under a wrong hash. `held` lists every reference
    /// that sequences hold.
    #[cfg(test)]
    pub(super) fn assert_consistent(&self, held: impl Iterator<Item = BlockId>) {
        let mut expected = vec![0_u32; self.blocks.len()];
        expected[0] = 1;
        for id in held {
            expected[id as usize] += 1;
        }
        for (id, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.references, expected[id], "references of block {id}");
        }
        let (mut seen, mut previous, mut at) = (0, NONE, self.head);
        while at != NONE {
            let block = self.blocks[at as usize];
            assert_eq!(block.references, 0, "block {at} is free and referenced");
            assert_eq!(block.previous, previous, "back link of block {at}");
            (previous, at, seen) = (at, block.next, seen + 1);
            assert!(seen <= self.blocks.len(), "free list has a cycle");
        }
        assert_eq!(previous, self.tail);
        assert_eq!(seen, self.free);
        assert_eq!(seen, expected[1..].iter().filter(|count| **count == 0).count());
        for (hash, id) in &self.index {
            assert_eq!(self.blocks[*id as usize].hash, Some(*hash));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(pool: &mut BlockPool, count: usize) -> Vec<BlockId> {
        let mut blocks = Vec::new();
        assert!(pool.allocate(count, &mut blocks));
        blocks
    }

    #[test]
    fn the_null_block_is_never_handed_out() {
        let mut pool = BlockPool::new(4, true);
        assert_eq!(pool.usable(), 3);
        let blocks = take(&mut pool, 3);
        assert!(!blocks.contains(&0));
        assert!(!pool.allocate(1, &mut Vec::new()));
        assert!((pool.usage() - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn the_end_of_a_chain_is_evicted_before_its_start() {
        let mut pool = BlockPool::new(4, true);
        let chain = take(&mut pool, 3);
        for (id, hash) in chain.iter().zip([10, 11, 12]) {
            pool.register(*id, hash);
        }
        pool.release(&chain);
        take(&mut pool, 1);
        assert_eq!(pool.lookup(&[10, 11, 12]), &chain[..2]);
        take(&mut pool, 1);
        assert_eq!(pool.lookup(&[10, 11, 12]), &chain[..1]);
    }

    #[test]
    fn anonymous_blocks_are_reused_before_cached_ones() {
        let mut pool = BlockPool::new(5, true);
        let cached = take(&mut pool, 2);
        pool.register(cached[0], 1);
        pool.register(cached[1], 2);
        let anonymous = take(&mut pool, 2);
        pool.release(&cached);
        pool.release(&anonymous);
        take(&mut pool, 2);
        assert_eq!(pool.lookup(&[1, 2]), cached);
    }

    #[test]
    fn a_shared_block_is_free_only_after_its_last_reference() {
        let mut pool = BlockPool::new(3, true);
        let blocks = take(&mut pool, 1);
        pool.register(blocks[0], 7);
        let found = pool.lookup(&[7]);
        pool.reference(&found);
        pool.release(&blocks);
        assert_eq!(pool.free(), 1);
        assert!(!pool.reset());
        pool.release(&found);
        assert_eq!(pool.free(), 2);
        assert!(pool.reset());
        assert!(pool.lookup(&[7]).is_empty());
    }

    #[test]
    fn without_caching_nothing_is_found() {
        let mut pool = BlockPool::new(3, false);
        let blocks = take(&mut pool, 1);
        pool.register(blocks[0], 7);
        pool.release(&blocks);
        assert!(pool.lookup(&[7]).is_empty());
    }
}
