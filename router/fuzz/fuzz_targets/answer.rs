//! An endpoint's answer is read or refused, and it does not matter in which pieces it arrives.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use weir_router::proxy::upstream::answer::{Framing, take_head};

/// Status and unframed body; `None` when it is refused or its head incomplete.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Option<(u16, Vec<u8>)> {
    let (mut buffer, mut body, mut head) = (BytesMut::new(), Vec::new(), None);
    for piece in pieces {
        buffer.extend_from_slice(piece);
        if head.is_none() {
            head = take_head(&mut buffer).ok()?;
        }
        match head.as_mut().map(|head| &mut head.framing) {
            Some(Framing::Chunked(chunked)) => chunked.decode(&mut buffer, &mut body).ok()?,
            Some(Framing::Length(_) | Framing::Close) => body.extend_from_slice(&buffer.split()),
            None => {}
        }
    }
    Some((head?.parts.status.as_u16(), body))
}

fuzz_target!(|input: (u8, &[u8])| {
    let (size, answer) = input;
    let whole = read(std::iter::once(answer));
    let piecewise = read(answer.chunks(usize::from(size) + 1));
    assert_eq!(whole, piecewise);
});
