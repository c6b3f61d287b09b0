//! One pass over a JSON body: the fields the router acts on, as values or as places in the text.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::Api;
use crate::proxy::{json, respond::Refusal};

/// Most bytes of a model name.
const MAX_MODEL_BYTES: usize = 256;
/// Most answers to one request (OpenAI's own bound).
const MAX_N: u64 = 128;
/// Most output tokens that are taken for a number somebody means.
const MAX_OUTPUT_TOKENS: u64 = 10_000_000;

/// What a body asks for. Places are byte ranges of the body it was read from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ask {
    /// `model`.
    pub model: Option<String>,
    /// `stream`.
    pub stream: bool,
    /// `stream_options.include_usage`.
    pub include_usage: bool,
    /// `n`; 1 when absent.
    pub n: u32,
    /// `max_tokens`, `max_completion_tokens` or `max_output_tokens`.
    pub max_tokens: Option<u64>,
    /// `workflow_metadata`.
    pub workflow: Metadata,
    /// A `priority` was given: the engines' own field, which would pass the pool's order by.
    pub engine_priority: bool,
    /// The bytes to cut out before the body is forwarded, in order and apart from each other.
    pub cuts: Vec<Range<usize>>,
    /// Prompt tokens, estimated as a quarter of the body's bytes.
    pub prompt_tokens: u64,
    /// Places of members that may tell a workflow.
    pub places: Places,
}

/// `workflow_metadata`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    /// `workflow_id`.
    pub workflow_id: Option<String>,
    /// `agent_id`.
    pub agent_id: Option<String>,
    /// `parent_request_id`.
    pub parent_request_id: Option<String>,
    /// `workflow_priority`, above 0; 1 is neutral.
    pub priority: Option<f64>,
    /// `context_sharing_strategy`.
    pub context_sharing: Option<ContextSharing>,
}

/// `context_sharing_strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextSharing {
    /// `auto`.
    Auto,
    /// `broadcast`.
    Broadcast,
    /// `selective`.
    Selective,
    /// `none`.
    None,
}

/// Where members are in the body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// `tools`.
    pub tools: Option<Range<usize>>,
    /// `system`.
    pub system: Option<Range<usize>>,
    /// `instructions`.
    pub instructions: Option<Range<usize>>,
    /// `messages`.
    pub messages: Option<Range<usize>>,
    /// `input`.
    pub input: Option<Range<usize>>,
    /// `metadata`.
    pub metadata: Option<Range<usize>>,
    /// `user`.
    pub user: Option<Range<usize>>,
    /// `prompt_cache_key`.
    pub prompt_cache_key: Option<Range<usize>>,
    /// `vllm_xargs`.
    pub vllm_xargs: Option<Range<usize>>,
}

impl Ask {
    /// What an API cannot do without is there, so that no engine is woken only to refuse.
    ///
    /// # Errors
    /// `Invalid`, naming the field.
    pub fn check(&self, api: Api) -> Result<(), Refusal> {
        let is_missing = matches!(api, Api::Chat | Api::Messages) && self.places.messages.is_none();
        if is_missing {
            return Err(Refusal::invalid("messages", "`messages` is missing"));
        }
        Ok(())
    }

    /// The body to forward: the same bytes, without `workflow_metadata` and `priority`.
    #[must_use]
    pub fn forwarded(&self, body: Bytes) -> Bytes {
        if self.cuts.is_empty() {
            return body;
        }
        let mut rest = BytesMut::with_capacity(body.len());
        let mut kept = 0;
        for cut in &self.cuts {
            rest.extend_from_slice(&body[kept..cut.start]);
            kept = cut.end;
        }
        rest.extend_from_slice(&body[kept..]);
        rest.freeze()
    }
}

/// Reads a body.
///
/// # Errors
/// `Invalid`, naming the field where one is at fault. Fields that the router does not read are not looked at. Of those
/// it reads, none may be given twice: two readers could choose differently.
pub fn parse(body: &[u8], max_depth: u32) -> Result<Ask, Refusal> {
    let text = std::str::from_utf8(body).map_err(|error| {
        Refusal::malformed(format!("the body is not UTF-8 (byte {})", error.valid_up_to()))
    })?;
    if json::is_deeper_than(body, max_depth) {
        return Err(Refusal::malformed(format!(
            "the body nests deeper than {max_depth} levels"
        )));
    }
    if !text.trim_start().starts_with('{') {
        return Err(Refusal::malformed("the body must be a JSON object"));
    }
    let mut reader = Reader {
        text,
        ask: Ask {
            n: 1,
            prompt_tokens: body.len() as u64 / 4,
            ..Ask::default()
        },
        seen: 0,
        before: 0,
        keeps: false,
        problem: None,
    };
    json::each_member(text, |key, value| reader.member(key, value))
        .map_err(|error| Refusal::malformed(format!("the body is not valid JSON: {error}")))?;
    match reader.problem {
        Some(problem) => Err(problem),
        None => Ok(reader.ask),
    }
}

/// Names of the members that are read; the position is the bit in [`Reader::seen`].
const NAMES: [&str; 25] = [
    "model",
    "stream",
    "stream_options",
    "n",
    "best_of",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "workflow_metadata",
    "tools",
    "system",
    "instructions",
    "messages",
    "input",
    "metadata",
    "user",
    "prompt_cache_key",
    "priority",
    "prompt",
    "stop",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
];

struct Reader<'a> {
    text: &'a str,
    ask: Ask,
    seen: u32,
    /// End of the member before.
    before: usize,
    /// A member before stays in the body.
    keeps: bool,
    problem: Option<Refusal>,
}

impl<'a> Reader<'a> {
    fn member(&mut self, key: &str, value: &'a str) {
        let place = self.place(value);
        let before = std::mem::replace(&mut self.before, place.end);
        let known = if key == "vllm_xargs" {
            Some("vllm_xargs")
        } else {
            None
        };
        let index = NAMES.iter().position(|name| *name == key);
        if let Some(index) = index {
            if self.seen & (1 << index) != 0 {
                self.fail(Refusal::invalid(NAMES[index], format!("`{key}` is given twice")));
            }
            self.seen |= 1 << index;
        }
        if matches!(key, "workflow_metadata" | "priority") {
            self.cut(before, &place);
        } else {
            self.keeps = true;
        }
        let Some(name) = index.map(|index| NAMES[index]).or(known) else {
            return;
        };
        if let Err(problem) = self.read(name, value, place) {
            self.fail(problem);
        }
    }

    fn fail(&mut self, problem: Refusal) {
        self.problem.get_or_insert(problem);
    }

    /// Where `value`, a slice of the text, is.
    fn place(&self, value: &str) -> Range<usize> {
        let start = value.as_ptr() as usize - self.text.as_ptr() as usize;
        start..start + value.len()
    }

    /// Marks a member for cutting, with one of the commas beside it: the one before where something before stays, so
    /// that what is left is an object whichever members go. `before` is the end of the member before.
    fn cut(&mut self, before: usize, place: &Range<usize>) {
        if self.keeps {
            self.ask.cuts.push(before..place.end);
            return;
        }
        let opened = self.text.find('{').map_or(0, |at| at + 1);
        let start = self.ask.cuts.last().map_or(opened, |cut| cut.end);
        let rest = &self.text[place.end..];
        let spaces = rest.len() - rest.trim_start().len();
        let comma = rest[spaces..].starts_with(',');
        self.ask
            .cuts
            .push(start..place.end + if comma { spaces + 1 } else { 0 });
    }

    fn read(&mut self, name: &'static str, value: &str, place: Range<usize>) -> Result<(), Refusal> {
        if value == "null" && name != "workflow_metadata" {
            return Ok(());
        }
        let ask = &mut self.ask;
        match name {
            "model" => ask.model = Some(model(value)?),
            "stream" => ask.stream = boolean("stream", value)?,
            "stream_options" => {
                object("stream_options", value)?;
                if let Some(flag) = json::member(value, "include_usage").filter(|flag| *flag != "null") {
                    ask.include_usage = boolean("stream_options.include_usage", flag)?;
                }
            }
            "n" => ask.n = integer("n", value, 1, MAX_N)? as u32,
            "best_of" => _ = integer("best_of", value, 1, MAX_N)?,
            "max_tokens" | "max_completion_tokens" | "max_output_tokens" => {
                ask.max_tokens = Some(integer(name, value, 0, MAX_OUTPUT_TOKENS)?);
            }
            "priority" => ask.engine_priority = true,
            "workflow_metadata" => {
                if value != "null" {
                    ask.workflow = metadata(value)?;
                }
            }
            "temperature" | "top_p" | "presence_penalty" | "frequency_penalty" => number(name, value)?,
            "seed" => whole(name, value)?,
            "prompt" | "stop" => text_or_array(name, value)?,
            "tools" => {
                array(name, value)?;
                ask.places.tools = Some(place);
            }
            "system" => ask.places.system = Some(place),
            "instructions" => ask.places.instructions = Some(place),
            "messages" => {
                array(name, value)?;
                ask.places.messages = Some(place);
            }
            "input" => {
                text_or_array(name, value)?;
                ask.places.input = Some(place);
            }
            "metadata" => ask.places.metadata = Some(place),
            "user" => ask.places.user = Some(place),
            "prompt_cache_key" => ask.places.prompt_cache_key = Some(place),
            _ => ask.places.vllm_xargs = Some(place),
        }
        Ok(())
    }
}

fn model(value: &str) -> Result<String, Refusal> {
    let name = json::string(value).ok_or_else(|| Refusal::invalid("model", "`model` must be a string"))?;
    if name.is_empty() || name.len() > MAX_MODEL_BYTES {
        return Err(Refusal::invalid(
            "model",
            format!("`model` must be 1 to {MAX_MODEL_BYTES} bytes long"),
        ));
    }
    Ok(name.into_owned())
}

fn boolean(name: &'static str, value: &str) -> Result<bool, Refusal> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Refusal::invalid(name, format!("`{name}` must be true or false"))),
    }
}

fn integer(name: &'static str, value: &str, least: u64, most: u64) -> Result<u64, Refusal> {
    value
        .parse()
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| {
            Refusal::invalid(
                name,
                format!("`{name}` must be an integer from {least} to {most}"),
            )
        })
}

fn object(name: &'static str, value: &str) -> Result<(), Refusal> {
    if value.starts_with('{') {
        Ok(())
    } else {
        Err(Refusal::invalid(name, format!("`{name}` must be an object")))
    }
}

fn array(name: &'static str, value: &str) -> Result<(), Refusal> {
    if value.starts_with('[') {
        Ok(())
    } else {
        Err(Refusal::invalid(name, format!("`{name}` must be an array")))
    }
}

fn text_or_array(name: &'static str, value: &str) -> Result<(), Refusal> {
    if value.starts_with(['[', '"']) {
        Ok(())
    } else {
        let message = format!("`{name}` must be a string or an array");
        Err(Refusal::invalid(name, message))
    }
}

/// JSON's numbers begin with a digit or a minus, and nothing else does.
fn number(name: &'static str, value: &str) -> Result<(), Refusal> {
    if value.starts_with(|first: char| first.is_ascii_digit() || first == '-') {
        Ok(())
    } else {
        Err(Refusal::invalid(name, format!("`{name}` must be a number")))
    }
}

fn whole(name: &'static str, value: &str) -> Result<(), Refusal> {
    if value
        .strip_prefix('-')
        .unwrap_or(value)
        .bytes()
        .all(|byte| byte.is_ascii_digit())
    {
        Ok(())
    } else {
        Err(Refusal::invalid(name, format!("`{name}` must be an integer")))
    }
}

fn metadata(text: &str) -> Result<Metadata, Refusal> {
    object("workflow_metadata", text)?;
    let mut metadata = Metadata::default();
    let mut problem = Ok(());
    let mut seen = 0_u32;
    let mut read = |key: &str, value: &str| -> Result<(), Refusal> {
        let (bit, field) = match key {
            "workflow_id" => (1, "workflow_metadata.workflow_id"),
            "agent_id" => (2, "workflow_metadata.agent_id"),
            "parent_request_id" => (4, "workflow_metadata.parent_request_id"),
            "workflow_priority" => (8, "workflow_metadata.workflow_priority"),
            "context_sharing_strategy" => (16, "workflow_metadata.context_sharing_strategy"),
            "metadata" => (32, "workflow_metadata.metadata"),
            _ => return Ok(()),
        };
        if seen & bit != 0 {
            return Err(Refusal::invalid(field, format!("`{field}` is given twice")));
        }
        seen |= bit;
        if value == "null" {
            return Ok(());
        }
        match key {
            "workflow_id" => metadata.workflow_id = Some(text_of(field, value)?),
            "agent_id" => metadata.agent_id = Some(text_of(field, value)?),
            "parent_request_id" => metadata.parent_request_id = Some(text_of(field, value)?),
            "workflow_priority" => metadata.priority = Some(priority(field, value)?),
            "context_sharing_strategy" => metadata.context_sharing = Some(context_sharing(field, value)?),
            _ => object(field, value)?,
        }
        Ok(())
    };
    json::each_member(text, |key, value| {
        if problem.is_ok() {
            problem = read(key, value);
        }
    })
    .map_err(|error| Refusal::invalid("workflow_metadata", format!("not valid JSON: {error}")))?;
    problem.map(|()| metadata)
}

fn text_of(field: &'static str, value: &str) -> Result<String, Refusal> {
    json::string(value)
        .map(std::borrow::Cow::into_owned)
        .ok_or_else(|| Refusal::invalid(field, format!("`{field}` must be a string")))
}

fn priority(field: &'static str, value: &str) -> Result<f64, Refusal> {
    serde_json::from_str(value)
        .ok()
        .filter(|priority: &f64| priority.is_finite() && *priority > 0.0)
        .ok_or_else(|| Refusal::invalid(field, format!("`{field}` must be a number above 0")))
}

fn context_sharing(field: &'static str, value: &str) -> Result<ContextSharing, Refusal> {
    match json::string(value).as_deref() {
        Some("auto") => Ok(ContextSharing::Auto),
        Some("broadcast") => Ok(ContextSharing::Broadcast),
        Some("selective") => Ok(ContextSharing::Selective),
        Some("none") => Ok(ContextSharing::None),
        _ => Err(Refusal::invalid(
            field,
            format!("`{field}` must be auto, broadcast, selective or none"),
        )),
    }
}

#[cfg(test)]
mod tests;
