//! What gateways, operators and sidecars tell each other is read or refused: no bytes make a reader panic, the cuts of a
//! stream do not matter, and what was read can be written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};
use weir_wire::{
    control::{Event, OrderAnswer, OrderRequest},
    lines::Lines,
    sidecar::{EngineState, Homes},
};

const MAX_LINE: usize = 1 << 10;

fn events<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Event>, bool) {
    let (mut lines, mut heard) = (Lines::new(MAX_LINE), Vec::new());
    for piece in pieces {
        if lines.push(piece, |event| heard.push(event)).is_err() {
            return (heard, false);
        }
    }
    (heard, true)
}

fn read_again<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(read) = serde_json::from_slice::<T>(bytes) {
        let written = serde_json::to_vec(&read).expect("what was read can be written");
        serde_json::from_slice::<T>(&written).expect("what was written can be read");
    }
}

fuzz_target!(|input: (u8, &[u8])| {
    let (size, bytes) = input;
    let (whole, trusted) = events(std::iter::once(bytes));
    let (piecewise, still) = events(bytes.chunks(usize::from(size) + 1));
    assert_eq!((&whole, trusted), (&piecewise, still));
    read_again::<Event>(bytes);
    read_again::<OrderRequest>(bytes);
    read_again::<OrderAnswer>(bytes);
    read_again::<EngineState>(bytes);
    read_again::<Homes>(bytes);
});
