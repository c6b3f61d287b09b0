//! Which workflow a request belongs to: the first source that has an id wins.

use http::HeaderMap;
use sha2::{Digest as _, Sha256};
use weir_wire::{config::IdentitySource, headers};

use crate::proxy::{
    json,
    request::{Ask, Places},
    respond::Refusal,
};

/// Most bytes of an id.
pub const MAX_ID_BYTES: usize = 256;

/// Session headers of known agent clients, in order: Claude Code, Codex, then conventions of other routers.
const KNOWN_HEADERS: [&str; 8] = [
    "x-claude-code-session-id",
    "session-id",
    "thread-id",
    "x-session-affinity",
    "x-session-id",
    "x-dynamo-session-id",
    "x-smg-routing-key",
    "x-aibrix-session-key",
];
/// Members of `metadata` that name a session, in order.
const KNOWN_METADATA: [&str; 4] = ["session_id", "conversation_id", "thread_id", "user_id"];

/// How a workflow was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// `X-Weir-Workflow-Id`.
    WeirHeader,
    /// `workflow_metadata.workflow_id`.
    WorkflowMetadata,
    /// A header or body path that the policy names.
    Configured,
    /// What a known client sends.
    KnownClient,
    /// A hash of the conversation's beginning.
    ConversationRoot,
}

/// A workflow, recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its id, as the client sent it or as a hash.
    pub id: String,
    /// How it was recognised.
    pub source: Source,
}

/// What identification looks at.
#[derive(Clone, Copy)]
pub struct Evidence<'a> {
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// The body, read.
    pub ask: &'a Ask,
    /// The body as it came; [`Ask`]'s places are in it.
    pub body: &'a [u8],
}

/// Finds the workflow of a request. With no `sources`, the built-in order: Weir's header, Weir's body field, known
/// clients, the conversation's root.
///
/// # Errors
/// `Invalid`, naming the field, for an explicit id that is empty, longer than 256 bytes or has control characters.
pub fn identify(evidence: Evidence<'_>, sources: &[IdentitySource]) -> Result<Option<Identity>, Refusal> {
    check_companions(evidence)?;
    let explicit = explicit(evidence)?;
    if sources.is_empty() {
        if explicit.is_some() {
            return Ok(explicit);
        }
        return Ok(known_client(evidence)?.or_else(|| conversation_root(evidence)));
    }
    for source in sources {
        let found = match source {
            IdentitySource::Header(name) => {
                header(evidence.headers, name)?.map(|id| (id, Source::Configured))
            }
            IdentitySource::Body(path) => body_path(evidence.body, path)?.map(|id| (id, Source::Configured)),
            IdentitySource::KnownClients => match explicit.clone() {
                Some(explicit) => return Ok(Some(explicit)),
                None => known_client(evidence)?.map(|known| (known.id, known.source)),
            },
            IdentitySource::ConversationRoot => {
                conversation_root(evidence).map(|root| (root.id, root.source))
            }
        };
        if let Some((id, source)) = found {
            return Ok(Some(Identity { id, source }));
        }
    }
    Ok(None)
}

/// Weir's own header and body field.
fn explicit(evidence: Evidence<'_>) -> Result<Option<Identity>, Refusal> {
    if let Some(id) = header(evidence.headers, headers::WORKFLOW_ID)? {
        let source = Source::WeirHeader;
        return Ok(Some(Identity { id, source }));
    }
    let Some(id) = &evidence.ask.workflow.workflow_id else {
        return Ok(None);
    };
    Ok(Some(Identity {
        id: checked("workflow_metadata.workflow_id", id)?.to_owned(),
        source: Source::WorkflowMetadata,
    }))
}

/// Agent and parent ids travel beside the workflow's and obey the same bounds.
fn check_companions(evidence: Evidence<'_>) -> Result<(), Refusal> {
    header(evidence.headers, headers::AGENT_ID)?;
    header(evidence.headers, headers::PARENT_REQUEST_ID)?;
    let metadata = &evidence.ask.workflow;
    for (name, id) in [
        ("workflow_metadata.agent_id", &metadata.agent_id),
        ("workflow_metadata.parent_request_id", &metadata.parent_request_id),
    ] {
        if let Some(id) = id {
            checked(name, id)?;
        }
    }
    Ok(())
}

fn checked<'a>(name: &str, id: &'a str) -> Result<&'a str, Refusal> {
    if id.is_empty() || id.len() > MAX_ID_BYTES {
        let message = format!("`{name}` must be 1 to {MAX_ID_BYTES} bytes long");
        return Err(Refusal::invalid(name.to_owned(), message));
    }
    if id.chars().any(char::is_control) {
        let message = format!("`{name}` must have no control characters");
        return Err(Refusal::invalid(name.to_owned(), message));
    }
    Ok(id)
}

fn header(map: &HeaderMap, name: &str) -> Result<Option<String>, Refusal> {
    let Some(value) = map.get(name) else {
        return Ok(None);
    };
    let text = std::str::from_utf8(value.as_bytes())
        .map_err(|_| Refusal::invalid(name.to_owned(), format!("`{name}` is not UTF-8")))?;
    Ok(Some(checked(name, text)?.to_owned()))
}

fn body_path(body: &[u8], path: &str) -> Result<Option<String>, Refusal> {
    let text = std::str::from_utf8(body).unwrap_or_default();
    let Some(id) = json::at_path(text, path).and_then(json::string) else {
        return Ok(None);
    };
    Ok(Some(checked(path, &id)?.to_owned()))
}

/// Ids made for routing must be good ones; `metadata` and `user` were made for other ends and are passed over when
/// they cannot serve as an id.
fn known_client(evidence: Evidence<'_>) -> Result<Option<Identity>, Refusal> {
    let source = Source::KnownClient;
    for name in KNOWN_HEADERS {
        if let Some(id) = header(evidence.headers, name)? {
            return Ok(Some(Identity { id, source }));
        }
    }
    let Places {
        vllm_xargs,
        prompt_cache_key,
        metadata,
        user,
        ..
    } = &evidence.ask.places;
    let context = text(evidence.body, vllm_xargs.as_ref())
        .and_then(|args| json::member(args, "agentic_context"))
        .and_then(json::string);
    let key = text(evidence.body, prompt_cache_key.as_ref()).and_then(json::string);
    for (name, id) in [("vllm_xargs.agentic_context", context), ("prompt_cache_key", key)] {
        if let Some(id) = id {
            let id = checked(name, &id)?.to_owned();
            return Ok(Some(Identity { id, source }));
        }
    }
    let metadata = text(evidence.body, metadata.as_ref());
    let candidates = KNOWN_METADATA
        .iter()
        .filter_map(|name| json::member(metadata?, name))
        .chain(text(evidence.body, user.as_ref()));
    let id = candidates
        .filter_map(json::string)
        .find(|id| checked("", id).is_ok())
        .map(std::borrow::Cow::into_owned);
    Ok(id.map(|id| Identity { id, source }))
}

fn text<'a>(body: &'a [u8], place: Option<&std::ops::Range<usize>>) -> Option<&'a str> {
    std::str::from_utf8(body.get(place?.clone())?).ok()
}

/// `root-` and half a SHA-256 over model, tools, system prompt and first user message: what every turn of one
/// conversation repeats. `None` for a request without a user message (a plain prompt, an embedding).
fn conversation_root(evidence: Evidence<'_>) -> Option<Identity> {
    let places = &evidence.ask.places;
    let mut hash = Sha256::new();
    let mut add = |part: Option<&str>| {
        let part = part.unwrap_or_default();
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    };
    add(evidence.ask.model.as_deref());
    for place in [&places.tools, &places.system, &places.instructions] {
        add(text(evidence.body, place.as_ref()));
    }
    let turns = text(evidence.body, places.messages.as_ref().or(places.input.as_ref()))?;
    let mut found = false;
    if turns.starts_with('"') {
        add(Some(turns));
        found = true;
    } else {
        json::each_element(turns, |turn| {
            let role = json::member(turn, "role").and_then(json::string);
            add(Some(turn));
            found = role.as_deref() == Some("user");
            !found
        })
        .ok()?;
    }
    if !found {
        return None;
    }
    let digest = hash.finalize();
    let mut id = String::from("root-");
    for byte in &digest[..16] {
        use std::fmt::Write as _;
        let _ = write!(id, "{byte:02x}");
    }
    Some(Identity {
        id,
        source: Source::ConversationRoot,
    })
}

#[cfg(test)]
mod tests;
