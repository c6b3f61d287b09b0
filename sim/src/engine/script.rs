//! What the "model" says: a token sequence fixed by seed and prompt, of pseudo words that tokenise back to themselves.

use super::tokens::{Control, Token, hash_bytes, mix, push_text};

/// Median of the answer's length in tokens when the model may stop by itself. Agent turns in public traces lie
/// between 50 and 500.
const MEDIAN_TOKENS: f64 = 160.0;
/// Spread of the answer's length: standard deviation of its natural logarithm.
const SIGMA: f64 = 0.8;
const ONSETS: &[u8; 16] = b"bcdfghklmnprstvw";
const VOWELS: &[u8; 8] = b"aeiouaei";

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Finish {
    /// The model stopped by itself.
    Stop,
    /// `max_tokens` or the context's end.
    Length,
    /// Ended by an operator's order (sleep, pause), not by its client.
    Abort,
}

/// The output of one sequence, known before it runs.
#[derive(Debug, Clone)]
pub struct Script {
    key: u64,
    /// Tokens that come before the words: a tool call's.
    head: Vec<Token>,
    length: usize,
    finish: Finish,
}

/// What the request says about its output's length, in tokens.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Upper bound, already clipped to the context.
    pub max: usize,
    /// Lower bound.
    pub min: usize,
    /// Exactly `max` tokens.
    pub ignore_eos: bool,
}

impl Script {
    /// Free text: its length is drawn from a log-normal distribution by `key`, within `limits`.
    pub fn words(key: u64, limits: Limits) -> Self {
        let drawn = if limits.ignore_eos {
            usize::MAX
        } else {
            draw_length(key).max(limits.min).max(1)
        };
        let (length, finish) = if drawn <= limits.max {
            (drawn, Finish::Stop)
        } else {
            (limits.max, Finish::Length)
        };
        Self {
            key,
            head: Vec::new(),
            length,
            finish,
        }
    }

    /// A call of tool `name` with one made-up argument.
    pub fn tool_call(key: u64, name: &str, limits: Limits) -> Self {
        let mut head = vec![Control::Call.token()];
        let word = |index| String::from_utf8_lossy(&word(key, index)).trim().to_owned();
        push_text(
            &mut head,
            &format!("{name}\n{{\"input\":\"{} {} {}\"}}", word(0), word(1), word(2)),
        );
        let length = (head.len() + 1).min(limits.max);
        let finish = if length > head.len() {
            Finish::Stop
        } else {
            Finish::Length
        };
        Self {
            key,
            head,
            length,
            finish,
        }
    }

    /// Number of tokens, the closing [`Control::End`] included.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How it ends when nobody interferes.
    pub fn finish(&self) -> Finish {
        self.finish
    }

    /// The token at `index`, below [`Self::len`].
    pub fn token(&self, index: usize) -> Token {
        if self.finish == Finish::Stop && index + 1 == self.length {
            return Control::End.token();
        }
        match self.head.get(index) {
            Some(token) => *token,
            None => u32::from_le_bytes(word(self.key, index)),
        }
    }
}

/// Key of a request's output: equal for equal seed, prompt, and choice.
pub fn output_key(seed: u64, prompt_hash: u64, choice: u32) -> u64 {
    mix(hash_bytes(&seed.to_le_bytes()) ^ prompt_hash ^ mix(u64::from(choice)))
}

/// Four letters that begin or go on with a word, always ASCII.
fn word(key: u64, index: usize) -> [u8; 4] {
    let bits = mix(key ^ (index as u64).wrapping_mul(0x2545_F491_4F6C_DD1D));
    let onset = |shift: u32| ONSETS[(bits >> shift) as usize & 15];
    let vowel = |shift: u32| VOWELS[(bits >> shift) as usize & 7];
    if bits >> 60 < 10 {
        [b' ', onset(0), vowel(4), onset(7)]
    } else {
        [onset(0), vowel(4), onset(7), vowel(11)]
    }
}

/// Log-normal length by Box and Muller.
fn draw_length(key: u64) -> usize {
    let uniform = |value: u64| ((value >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    let (u, v) = (uniform(mix(key ^ 1)), uniform(mix(key ^ 2)));
    let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    (MEDIAN_TOKENS * (SIGMA * normal).exp()).round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tokens::detokenise;

    const FREE: Limits = Limits {
        max: 100_000,
        min: 0,
        ignore_eos: false,
    };

    fn all(script: &Script) -> Vec<Token> {
        (0..script.len()).map(|index| script.token(index)).collect()
    }

    #[test]
    fn the_same_key_says_the_same() {
        let key = output_key(1, 42, 0);
        assert_eq!(all(&Script::words(key, FREE)), all(&Script::words(key, FREE)));
        let other = output_key(2, 42, 0);
        assert_ne!(all(&Script::words(key, FREE)), all(&Script::words(other, FREE)));
        assert_ne!(key, output_key(1, 42, 1));
    }

    #[test]
    fn output_tokenises_to_itself() {
        let script = Script::words(
            7,
            Limits {
                max: 50,
                min: 0,
                ignore_eos: true,
            },
        );
        let mut again = Vec::new();
        push_text(&mut again, &detokenise(&all(&script)));
        assert_eq!(again, all(&script));
    }

    #[test]
    fn lengths_obey_the_limits() {
        for key in 0..500 {
            let exact = Script::words(
                key,
                Limits {
                    max: 33,
                    min: 0,
                    ignore_eos: true,
                },
            );
            assert_eq!((exact.len(), exact.finish()), (33, Finish::Length));
            let bounded = Script::words(
                key,
                Limits {
                    max: 20,
                    min: 0,
                    ignore_eos: false,
                },
            );
            assert!((1..=20).contains(&bounded.len()));
            assert!(
                Script::words(
                    key,
                    Limits {
                        max: 9_000,
                        min: 300,
                        ignore_eos: false
                    }
                )
                .len()
                    >= 300
            );
        }
    }

    #[test]
    fn the_median_length_is_as_documented() {
        let mut lengths: Vec<usize> = (0..4001).map(|key| Script::words(key, FREE).len()).collect();
        lengths.sort_unstable();
        assert!((140..=180).contains(&lengths[2000]), "median {}", lengths[2000]);
    }

    #[test]
    fn a_tool_call_is_a_name_and_json() {
        let text = detokenise(&all(&Script::tool_call(3, "look_up", FREE)));
        let (name, arguments) = text.split_once('\n').unwrap();
        assert_eq!(name, "look_up");
        let parsed: serde_json::Value = serde_json::from_str(arguments).unwrap();
        assert!(parsed["input"].is_string());
    }
}
