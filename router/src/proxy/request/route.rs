//! Which paths exist.

use http::{Method, uri::PathAndQuery};

use crate::proxy::respond::{ErrorShape, Refusal};

/// The engine APIs that are forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// `POST /v1/chat/completions`.
    Chat,
    /// `POST /v1/completions`.
    Completions,
    /// `POST /v1/responses`.
    Responses,
    /// `POST /v1/embeddings`.
    Embeddings,
    /// `POST /v1/messages`.
    Messages,
    /// `POST /v1/messages/count_tokens`.
    CountTokens,
    /// `POST /tokenize`.
    Tokenize,
}

impl Api {
    /// Its name as a metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Responses => "responses",
            Self::Embeddings => "embeddings",
            Self::Messages => "messages",
            Self::CountTokens => "count_tokens",
            Self::Tokenize => "tokenize",
        }
    }

    /// How its clients expect errors.
    #[must_use]
    pub fn shape(self) -> ErrorShape {
        match self {
            Self::Messages | Self::CountTokens => ErrorShape::Anthropic,
            Self::Responses => ErrorShape::Responses,
            Self::Chat | Self::Completions | Self::Embeddings | Self::Tokenize => ErrorShape::OpenAi,
        }
    }
}

/// What a request wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To be forwarded to an engine.
    Forward(Api),
    /// The list of models.
    Models,
    /// One model, named by the rest of the path (percent-encoding undone).
    Model(String),
}

/// A path, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The pool that the path names (`/pools/NAME/v1/…`).
    pub pool: Option<String>,
    /// What is wanted.
    pub target: Target,
    /// Path and query for the engine; a copy, which does not keep the connection's read buffer alive.
    pub path: String,
}

impl Route {
    /// Understands method and path.
    ///
    /// # Errors
    /// `UnknownPath`, `MethodNotAllowed`.
    pub fn find(method: &Method, path: Option<&PathAndQuery>) -> Result<Self, Refusal> {
        let path = path.ok_or(Refusal::UnknownPath)?;
        let (pool, inner) = match path.as_str().strip_prefix("/pools/") {
            None => (None, path.as_str()),
            Some(rest) => {
                let (name, _) = rest.split_once('/').ok_or(Refusal::UnknownPath)?;
                (Some(name.to_owned()), &rest[name.len()..])
            }
        };
        // A part of a valid path and query that begins with a slash is one.
        let only_path = inner.split_once('?').map_or(inner, |(path, _)| path);
        let (target, allowed) = match only_path {
            "/v1/chat/completions" => (Target::Forward(Api::Chat), Method::POST),
            "/v1/completions" => (Target::Forward(Api::Completions), Method::POST),
            "/v1/responses" => (Target::Forward(Api::Responses), Method::POST),
            "/v1/embeddings" => (Target::Forward(Api::Embeddings), Method::POST),
            "/v1/messages" => (Target::Forward(Api::Messages), Method::POST),
            "/v1/messages/count_tokens" => (Target::Forward(Api::CountTokens), Method::POST),
            "/tokenize" => (Target::Forward(Api::Tokenize), Method::POST),
            "/v1/models" | "/v1/models/" => (Target::Models, Method::GET),
            other => {
                let id = other.strip_prefix("/v1/models/").ok_or(Refusal::UnknownPath)?;
                (Target::Model(percent_decoded(id)), Method::GET)
            }
        };
        if *method != allowed {
            return Err(Refusal::MethodNotAllowed { allow: allowed });
        }
        let path = inner.to_owned();
        Ok(Self { pool, target, path })
    }
}

/// Undoes percent-encoding; a bad escape is left as it is, and bytes that are not UTF-8 become U+FFFD.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let digit = |at: usize| tail.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(method: &Method, path: &str) -> Result<Route, Refusal> {
        Route::find(method, Some(&path.parse().unwrap()))
    }

    #[test]
    fn paths_are_found_with_and_without_a_pool() {
        let check = |path: &str, pool: Option<&str>, api: Api, inner: &str| {
            let route = find(&Method::POST, path).unwrap();
            assert_eq!(route.pool.as_deref(), pool);
            assert_eq!(route.target, Target::Forward(api));
            assert_eq!(route.path, inner);
        };
        check("/v1/chat/completions", None, Api::Chat, "/v1/chat/completions");
        check(
            "/pools/a/v1/messages?beta=true",
            Some("a"),
            Api::Messages,
            "/v1/messages?beta=true",
        );
        check("/tokenize", None, Api::Tokenize, "/tokenize");
    }

    #[test]
    fn models_are_named_by_the_rest_of_the_path() {
        let model = |path: &str| match find(&Method::GET, path).unwrap().target {
            Target::Model(id) => id,
            other => panic!("{other:?}"),
        };
        assert_eq!(model("/v1/models/org/name"), "org/name");
        assert_eq!(model("/v1/models/org%2Fname%zz"), "org/name%zz");
    }

    #[test]
    fn everything_else_is_refused() {
        for path in [
            "/",
            "/v1",
            "/v1/chat/completions/",
            "/pools/a",
            "/pools/a/",
            "/metrics",
            "/v1/../tokenize",
            "/sleep",
        ] {
            assert_eq!(find(&Method::POST, path), Err(Refusal::UnknownPath), "{path}");
        }
        assert_eq!(
            find(&Method::GET, "/v1/chat/completions"),
            Err(Refusal::MethodNotAllowed { allow: Method::POST })
        );
        assert_eq!(Route::find(&Method::CONNECT, None), Err(Refusal::UnknownPath));
    }
}
