//! However an answer is cut into pieces, the same is seen in it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_router::proxy::usage::Scanner;

fuzz_target!(|input: (bool, u8, Vec<u8>)| {
    let (events, piece, bytes) = input;
    let mut whole = Scanner::new(events);
    whole.feed(&bytes);
    whole.end();
    let mut pieces = Scanner::new(events);
    for part in bytes.chunks(usize::from(piece).max(1)) {
        pieces.feed(part);
    }
    pieces.end();
    assert_eq!(whole.seen(), pieces.seen());
});
