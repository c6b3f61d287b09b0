//! The tokeniser: a token is a run of at most four bytes, numbered by those bytes, so equal byte prefixes are equal
//! tokens, no vocabulary is needed, and a token can be turned back into its text.
//!
//! Text is cut into four-byte chunks from the start of each segment; control tokens (roles, ends of messages) stand
//! between segments. Bytes 0xFF never occur in UTF-8: one pads a short chunk, and one in front marks a control token.

/// A token; its number is its bytes, little-endian.
pub type Token = u32;

/// Control tokens of the chat template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Control {
    /// Start of every chat prompt.
    Begin = 1,
    /// The tool definitions follow.
    Tools = 2,
    /// A system message follows.
    System = 3,
    /// A user message follows.
    User = 4,
    /// The model speaks.
    Assistant = 5,
    /// A tool's result follows.
    Tool = 6,
    /// A tool call follows: name, newline, arguments.
    Call = 7,
    /// End of a message; also what the model emits to stop.
    End = 8,
    /// A picture or another part that is not text.
    Media = 9,
    /// A message of any other role follows.
    Other = 10,
}

const PAD: u8 = 0xFF;
const CHUNK: usize = 4;

impl Control {
    /// The token's number.
    pub const fn token(self) -> Token {
        u32::from_le_bytes([PAD, self as u8, PAD, PAD])
    }
}

/// Number of the token for a chunk of one to four bytes.
fn token_of(chunk: &[u8]) -> Token {
    let mut bytes = [PAD; CHUNK];
    bytes[..chunk.len()].copy_from_slice(chunk);
    u32::from_le_bytes(bytes)
}

/// Appends the tokens of one segment of text.
pub fn push_text(tokens: &mut Vec<Token>, text: &str) {
    tokens.reserve(text.len() / CHUNK + 1);
    tokens.extend(text.as_bytes().chunks(CHUNK).map(token_of));
}

/// Appends the text of a token to `bytes`; control tokens have none.
pub fn push_bytes(bytes: &mut Vec<u8>, token: Token) {
    let chunk = token.to_le_bytes();
    if chunk[0] != PAD {
        bytes.extend(chunk.iter().take_while(|byte| **byte != PAD));
    }
}

/// The text of some tokens; a character cut in half is shown as U+FFFD.
pub fn detokenise(tokens: &[Token]) -> String {
    let mut bytes = Vec::with_capacity(tokens.len() * CHUNK);
    for token in tokens {
        push_bytes(&mut bytes, *token);
    }
    match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    }
}

/// One round of a 64-bit mixer (splitmix64's finaliser); stable across versions and platforms.
pub const fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Stable 64-bit hash of bytes, for salts and names.
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(mix(bytes.len() as u64), |hash, chunk| {
        let mut word = [0_u8; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(hash ^ u64::from_le_bytes(word))
    })
}

/// Hash of a run of tokens that follows content with hash `parent`.
pub fn hash_tokens(parent: u64, tokens: &[Token]) -> u64 {
    tokens
        .iter()
        .fold(parent, |hash, token| mix(hash ^ u64::from(*token)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens(text: &str) -> Vec<Token> {
        let mut tokens = Vec::new();
        push_text(&mut tokens, text);
        tokens
    }

    #[test]
    fn control_tokens_have_no_text() {
        assert_eq!(
            detokenise(&[Control::Begin.token(), tokens("hi")[0], Control::End.token()]),
            "hi"
        );
    }

    #[test]
    fn hashes_are_stable_across_builds() {
        assert_eq!(hash_tokens(0, &tokens("stable text")), 12_712_941_150_713_545_220);
    }

    proptest! {
        #[test]
        fn text_survives_the_round_trip(text in "\\PC*") {
            prop_assert_eq!(detokenise(&tokens(&text)), text);
        }

        #[test]
        fn equal_prefixes_are_equal_tokens(prefix in "\\PC{0,60}", tail in "\\PC{0,60}") {
            let (short, long) = (tokens(&prefix), tokens(&format!("{prefix}{tail}")));
            let whole = prefix.len() / CHUNK;
            prop_assert_eq!(&short[..whole], &long[..whole]);
        }
    }
}
