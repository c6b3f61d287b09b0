//! The control token: a mounted file, read again when it changes, compared in constant time.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use http::{HeaderValue, header::HeaderMap};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

/// The file is looked at again at most this often.
const RECHECK: Duration = Duration::from_secs(1);
/// Longest token, bytes.
const MAX_BYTES: u64 = 4096;

/// Why there is no usable token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("token file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file holds nothing that can be a bearer token.
    #[error("token file {path}: must hold 1 to 4096 printable ASCII characters")]
    Unusable {
        /// The file.
        path: PathBuf,
    },
}

/// A bearer token in a file. Clones share what was read.
#[derive(Clone)]
pub struct TokenFile {
    path: Arc<Path>,
    held: Arc<Mutex<Held>>,
}

struct Held {
    token: String,
    stamp: Option<(SystemTime, u64)>,
    looked: Instant,
}

impl TokenFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// [`TokenError`] when the file is missing, unreadable or not a token.
    #[expect(clippy::disallowed_methods, reason = "the shell reads the clock")]
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, TokenError> {
        let path = path.into();
        let (token, stamp) = read(&path)?;
        let held = Held {
            token,
            stamp,
            looked: Instant::now(),
        };
        Ok(Self {
            path: path.into(),
            held: Arc::new(Mutex::new(held)),
        })
    }

    /// The headers carry `Authorization: Bearer` with the token of the file. Takes the same time for every wrong
    /// token of the right length.
    pub fn allows(&self, headers: &HeaderMap) -> bool {
        let mut given = headers.get_all(http::header::AUTHORIZATION).iter();
        let (Some(value), None) = (given.next(), given.next()) else {
            return false;
        };
        let Some(given) = value.as_bytes().strip_prefix(b"Bearer ") else {
            return false;
        };
        bool::from(self.current().as_bytes().ct_eq(given))
    }

    /// The `Authorization` value for asking someone who holds the same file.
    pub fn bearer(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::try_from(format!("Bearer {}", self.current())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// The token, read again if the file changed; an unreadable file leaves the last one. Reading blocks for the
    /// microseconds that a small file on a memory volume takes.
    #[expect(clippy::disallowed_methods, reason = "the shell reads the clock")]
    fn current(&self) -> String {
        let now = Instant::now();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(held.looked) >= RECHECK {
            held.looked = now;
            if stamp(&self.path) != held.stamp {
                match read(&self.path) {
                    Ok((token, stamp)) => (held.token, held.stamp) = (token, stamp),
                    Err(error) => {
                        tracing::warn!(error = %error, "control token cannot be read again, the last one stays");
                    }
                }
            }
        }
        held.token.clone()
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

fn read(path: &Path) -> Result<(String, Option<(SystemTime, u64)>), TokenError> {
    let stamp = stamp(path);
    let unusable = || TokenError::Unusable {
        path: path.to_owned(),
    };
    if stamp.is_some_and(|(_, length)| length > MAX_BYTES) {
        return Err(unusable());
    }
    let text = fs::read_to_string(path).map_err(|source| TokenError::Read {
        path: path.to_owned(),
        source,
    })?;
    let token = text.trim();
    if token.is_empty()
        || token.len() as u64 > MAX_BYTES
        || !token.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(unusable());
    }
    Ok((token.to_owned(), stamp))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(http::header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_files_token_passes_and_a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "abc\n").unwrap();
        let token = TokenFile::open(&path).unwrap();
        for (values, expected) in [
            (&["Bearer abc"][..], true),
            (&["Bearer abd"], false),
            (&["Bearer ab"], false),
            (&["Bearer "], false),
            (&["Basic abc"], false),
            (&["abc"], false),
            (&[], false),
            (&["Bearer abc", "Bearer abc"], false),
        ] {
            assert_eq!(token.allows(&headers(values)), expected, "{values:?}");
        }
        fs::write(&path, "changed").unwrap();
        assert!(
            token.allows(&headers(&["Bearer abc"])),
            "looked at again too soon"
        );
        tokio::time::advance(RECHECK).await;
        assert!(token.allows(&headers(&["Bearer changed"])));
        assert!(!token.allows(&headers(&["Bearer abc"])));
        fs::write(&path, "").unwrap();
        tokio::time::advance(RECHECK).await;
        assert!(
            token.allows(&headers(&["Bearer changed"])),
            "an emptied file must not open or close the door"
        );
    }

    #[test]
    fn files_that_hold_no_token_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        assert!(matches!(TokenFile::open(&path), Err(TokenError::Read { .. })));
        for text in ["", "\n", "a b", "é", &"x".repeat(5000)] {
            fs::write(&path, text).unwrap();
            assert!(
                matches!(TokenFile::open(&path), Err(TokenError::Unusable { .. })),
                "{text}"
            );
        }
    }
}
