//! Sessions as a trace tells them: who asks, after which pause, with which prompt.
//!
//! Three published formats are read (`weka`, `lmcache`, `mooncake`, told apart by the first line) and one
//! is made up (`builtin`). All become the same [`Session`]; nothing else in the program knows a format.

mod builtin;
mod lmcache;
mod mooncake;
#[cfg(test)]
mod tests;
mod weka;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use builtin::Generator;
use serde::Deserialize;
#[cfg(test)]
pub(crate) use tests::real;

/// Longest accepted line: the longest session of the published traces has about 100 kB.
const MAX_LINE_BYTES: usize = 64 << 20;
const XZ_MAGIC: [u8; 6] = [0xFD, b'7', b'z', b'X', b'Z', 0];

/// Id of the agent that a session begins with.
const MAIN: &str = "main";
const MAX_ID_CHARS: usize = 64;

/// Why a trace cannot be played.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    #[error("cannot read the trace {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}, line {line}: not a session of the {format} format")]
    Parse {
        path: PathBuf,
        line: usize,
        format: Format,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path}, line {line}: {what}")]
    Content {
        path: PathBuf,
        line: usize,
        what: String,
    },
    #[error(
        "{path}: the first line has neither `requests` (weka), `hash_ids` (mooncake) nor `session_id` and `input` (lmcache)"
    )]
    UnknownFormat { path: PathBuf },
    #[error("the trace {path} has no session")]
    Empty { path: PathBuf },
}

/// Which of the readable formats a trace has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Weka,
    Lmcache,
    Mooncake,
}

impl std::fmt::Display for Format {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Weka => "weka-claude-code",
            Self::Lmcache => "lmcache-agent-traces",
            Self::Mooncake => "mooncake",
        })
    }
}

/// A trace that was read from a file.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) name: String,
    pub(crate) format: Format,
    pub(crate) sessions: Vec<Session>,
}

/// One workflow: an agent and, below it, the agents that it starts.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) id: String,
    /// Seconds after the trace's first session, where the trace has absolute time.
    pub(crate) arrival_s: Option<f64>,
    /// Block ids mean the same in every session (else only inside this one).
    pub(crate) shared_blocks: bool,
    pub(crate) agent: Arc<Agent>,
}

/// A sequence of turns, one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    pub(crate) id: String,
    /// Tokens of tools and system prompt at the start of every prompt; 0 when unknown.
    pub(crate) head_tokens: u64,
    /// Tokens of one block; irrelevant for full-text prompts.
    pub(crate) block_tokens: u64,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Turn(Turn),
    /// Starts another agent beside this one, `pause_s` after the last turn's end.
    Spawn {
        pause_s: f64,
        agent: Arc<Agent>,
    },
}

/// One request of an agent.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    /// Seconds between what came before and this request.
    pub(crate) pause_s: f64,
    pub(crate) after: After,
    /// Agents this turn waits for: indices into the agent's `Spawn` steps.
    pub(crate) joins: Vec<usize>,
    pub(crate) prompt: Prompt,
    pub(crate) prompt_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) ending: Ending,
}

/// From which moment of what came before a pause counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// The end of the last turn and of the joined agents.
    End,
    /// The sending of the last turn, for traces that do not say when answers ended.
    Start,
}

/// How the traced answer ended, as far as known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    ToolUse,
    Other,
}

#[derive(Debug, Clone)]
pub(crate) enum Prompt {
    /// The first `keep` blocks of the agent's previous prompt, then `runs`; `tail` is the id whose first
    /// tokens follow when the blocks cover less than the prompt (`None`: tokens of no other prompt).
    Blocks {
        keep: u64,
        runs: Vec<Run>,
        tail: Option<u64>,
    },
    /// The prompt and its answer themselves.
    Text { input: String, output: String },
}

/// `count` blocks with the ids `first`, `first + 1`, ….
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

/// Bounds that cut sessions short.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Turns of one agent.
    pub(crate) turns: usize,
    /// Tokens of one prompt, as the trace counts them (before scaling).
    pub(crate) prompt_tokens: u64,
}

impl Session {
    /// Cuts every agent before its first turn outside the limits.
    ///
    /// The turns after a prompt that is too long are left out too: a client that cannot send its context does not go on.
    pub(crate) fn limit(&mut self, limits: Limits) {
        Arc::make_mut(&mut self.agent).limit(limits);
    }

    /// The requests of the session, all agents together.
    pub(crate) fn turns(&self) -> usize {
        self.agent.turns()
    }
}

impl Agent {
    fn limit(&mut self, limits: Limits) {
        let mut turns = 0;
        let end = self.steps.iter().position(|step| match step {
            Step::Turn(turn) => {
                turns += 1;
                turns > limits.turns || turn.prompt_tokens > limits.prompt_tokens
            }
            Step::Spawn { .. } => false,
        });
        if let Some(end) = end {
            self.steps.truncate(end);
        }
        for step in &mut self.steps {
            if let Step::Spawn { agent, .. } = step {
                Arc::make_mut(agent).limit(limits);
            }
        }
    }

    fn turns(&self) -> usize {
        let of_step = |step: &Step| match step {
            Step::Turn(_) => 1,
            Step::Spawn { agent, .. } => agent.turns(),
        };
        self.steps.iter().map(of_step).sum()
    }
}

/// Reads a trace; `.xz` is recognised by its content.
///
/// # Errors
/// When the file cannot be read, has no known format, or a line contradicts its format.
pub(crate) fn load(path: &Path) -> Result<Trace, TraceError> {
    let read = |source| TraceError::Read {
        path: path.to_owned(),
        source,
    };
    let lines = lines(path).map_err(read)?;
    let first = lines.first().ok_or_else(|| TraceError::Empty {
        path: path.to_owned(),
    })?;
    let format = detect(first).ok_or_else(|| TraceError::UnknownFormat {
        path: path.to_owned(),
    })?;
    let source = Source {
        path,
        format,
        lines: &lines,
    };
    let sessions = match format {
        Format::Weka => weka::sessions(&source)?,
        Format::Lmcache => lmcache::sessions(&source)?,
        Format::Mooncake => mooncake::sessions(&source)?,
    };
    let name = path
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(Trace {
        name,
        format,
        sessions,
    })
}

/// The lines of a trace with what an error about one of them must say.
struct Source<'a> {
    path: &'a Path,
    format: Format,
    lines: &'a [String],
}

impl Source<'_> {
    /// Every line as `T`, with its number from 1.
    fn parsed<T: for<'de> Deserialize<'de>>(&self) -> impl Iterator<Item = Result<(usize, T), TraceError>> {
        self.lines.iter().enumerate().map(|(index, text)| {
            serde_json::from_str(text)
                .map(|value| (index + 1, value))
                .map_err(|source| TraceError::Parse {
                    path: self.path.to_owned(),
                    line: index + 1,
                    format: self.format,
                    source,
                })
        })
    }

    fn content(&self, line: usize, what: String) -> TraceError {
        TraceError::Content {
            path: self.path.to_owned(),
            line,
            what,
        }
    }
}

fn lines(path: &Path) -> std::io::Result<Vec<String>> {
    let mut file = BufReader::new(File::open(path)?);
    let packed = file.fill_buf()?.starts_with(&XZ_MAGIC);
    let plain: Box<dyn Read> = if packed {
        Box::new(lzma_rust2::XzReader::new(file, true))
    } else {
        Box::new(file)
    };
    let mut plain = BufReader::new(plain);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if (&mut plain).take(MAX_LINE_BYTES as u64).read_line(&mut line)? == 0 {
            return Ok(lines);
        }
        if line.len() >= MAX_LINE_BYTES {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "a line exceeds 64 MiB",
            ));
        }
        if !line.trim().is_empty() {
            lines.push(line);
        }
    }
}

fn detect(line: &str) -> Option<Format> {
    /// Only which keys are there matters.
    #[derive(Deserialize)]
    struct Keys {
        requests: Option<serde::de::IgnoredAny>,
        hash_ids: Option<serde::de::IgnoredAny>,
        session_id: Option<serde::de::IgnoredAny>,
        input: Option<serde::de::IgnoredAny>,
    }
    let keys: Keys = serde_json::from_str(line).ok()?;
    match keys {
        Keys {
            requests: Some(_), ..
        } => Some(Format::Weka),
        Keys {
            hash_ids: Some(_), ..
        } => Some(Format::Mooncake),
        Keys {
            session_id: Some(_),
            input: Some(_),
            ..
        } => Some(Format::Lmcache),
        Keys { .. } => None,
    }
}

/// An id as it may stand in a header: letters, digits, dots, dashes and underscores.
pub(crate) fn plain_id(id: &str) -> String {
    let plain = |character: char| {
        if character.is_ascii_alphanumeric() || "._-".contains(character) {
            character
        } else {
            '-'
        }
    };
    id.chars().map(plain).take(MAX_ID_CHARS).collect()
}
