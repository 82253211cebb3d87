//! Access tokens: fetched when they are needed, kept until shortly before they expire, and replaced
//! when they are refused. There is one fetch at a time, however many calls wait for it.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use reqwest::header::HeaderValue;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use crate::files;
use crate::root::Error;
use crate::secret::SecretBytes;

use super::attempts::{Failure, Retry};
use super::http::{Client, Response, secret_header};

/// How long before its end a token is replaced, if it lives long enough: a metadata server returns
/// the same token until about four minutes before its end.
const MARGIN: Duration = Duration::from_secs(225);

/// Where tokens come from.
#[async_trait]
pub(in crate::root) trait Source: Send + Sync {
    /// Gets a token. Each of its calls may take `share`.
    async fn fetch(&self, client: &Client, share: Duration) -> Result<Token, Failure>;
}

/// A token.
pub(in crate::root) struct Token {
    header: HeaderValue,
    /// When to get another one.
    due: Instant,
    end: Instant,
}

impl Token {
    /// A token that is valid for `life` from now on; `None` if it can't be in a header.
    pub(in crate::root) fn new(secret: &SecretBytes, life: Duration) -> Option<Self> {
        let life = life.min(Duration::from_secs(24 * 60 * 60));
        let end = Instant::now() + life;
        let header = secret_header("Bearer ", secret)?;
        Some(Self { header, due: end - MARGIN.min(life / 4), end })
    }

    /// The value of the header `Authorization`.
    pub(in crate::root) fn header(&self) -> HeaderValue {
        self.header.clone()
    }
}

/// The current token of a root.
pub(in crate::root) struct Tokens {
    source: Box<dyn Source>,
    current: Mutex<Option<Arc<Token>>>,
    /// Held while a token is fetched.
    turn: AsyncMutex<()>,
}

impl Tokens {
    pub(in crate::root) fn new(source: Box<dyn Source>) -> Self {
        Self { source, current: Mutex::default(), turn: AsyncMutex::default() }
    }

    /// A token that is valid now.
    pub(in crate::root) async fn get(
        &self,
        client: &Client,
        share: Duration,
    ) -> Result<Arc<Token>, Failure> {
        if let Some(token) = self.current(|token| token.due) {
            return Ok(token);
        }
        let _turn = self.turn.lock().await;
        // The previous holder of the turn may have fetched it.
        if let Some(token) = self.current(|token| token.due) {
            return Ok(token);
        }
        match self.source.fetch(client, share).await {
            Ok(token) => {
                let token = Arc::new(token);
                *self.current.lock() = Some(Arc::clone(&token));
                Ok(token)
            }
            // The previous token is used as long as it is valid.
            Err(failure) => self.current(|token| token.end).ok_or(failure),
        }
    }

    /// Forgets `token`, which was refused. Another one may be valid.
    pub(in crate::root) fn refused(&self, token: &Arc<Token>) {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, token)) {
            *current = None;
        }
    }

    fn current(&self, until: impl Fn(&Token) -> Instant) -> Option<Arc<Token>> {
        let current = self.current.lock();
        current.as_ref().filter(|token| Instant::now() < until(token)).cloned()
    }
}

/// A token as OAuth 2.0 returns it.
#[derive(serde::Deserialize)]
struct Granted<'a> {
    #[serde(borrow)]
    access_token: Cow<'a, str>,
    /// In seconds. Some sources write it as text.
    #[serde(default)]
    expires_in: Seconds,
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(u64),
    Text(String),
}

impl Default for Seconds {
    fn default() -> Self {
        Self::Number(300)
    }
}

/// Reads the response of `what`, a source of tokens.
pub(in crate::root) fn granted(what: &str, response: &Response) -> Result<Token, Failure> {
    if !response.is_success() {
        return Err(refused(what, response));
    }
    let token = response.read::<Granted<'_>>().and_then(|granted| {
        let life = match granted.expires_in {
            Seconds::Number(seconds) => seconds,
            Seconds::Text(text) => text.parse().ok()?,
        };
        let secret = SecretBytes::new(granted.access_token.into_owned().into_bytes());
        Token::new(&secret, Duration::from_secs(life))
    });
    token.ok_or_else(|| no_credentials(format!("the response of {what} has no token")))
}

/// Why `what` gives no token. Only the short code of OAuth 2.0 is repeated, never a description,
/// which may contain what was sent.
pub(in crate::root) fn refused(what: &str, response: &Response) -> Failure {
    #[derive(serde::Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        error: Cow<'a, str>,
    }
    let is_code = |code: &str| {
        code.len() <= 60 && code.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
    };
    let body = response.read::<Body<'_>>().filter(|body| is_code(&body.error));
    let code = body.map(|body| format!(": {}", response.line(&body.error))).unwrap_or_default();
    let mut failure = no_credentials(format!("{what} answers {}{code}", response.status));
    if response.status >= 500 || response.status == 429 {
        failure.retry = response.retry_after().map_or(Retry::Soon, Retry::After);
    }
    failure
}

/// Warns if other users can read the file with credentials that `setting` names; returns whether
/// they can.
pub(in crate::root) fn warn_of_readers(setting: &str, path: &Path) -> bool {
    let Ok(Some(mode)) = files::mode_for_others(path) else { return false };
    let (file, mode) = (path.display(), format!("{mode:04o}"));
    tracing::warn!(setting, %file, mode, "other users can read the file with the credentials");
    true
}

/// There are no credentials, or none that are valid.
pub(in crate::root) fn no_credentials(detail: String) -> Failure {
    Failure::never(Error::Away(format!("no credentials: {detail}")))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;

    /// Gives tokens of 1,000 seconds, with a number, until it is set to fail.
    #[derive(Default)]
    struct Counted {
        fetched: Arc<AtomicU32>,
        fails: Arc<std::sync::atomic::AtomicBool>,
    }

    #[async_trait]
    impl Source for Counted {
        async fn fetch(&self, _: &Client, _: Duration) -> Result<Token, Failure> {
            if self.fails.load(SeqCst) {
                return Err(no_credentials("test".to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            let number = self.fetched.fetch_add(1, SeqCst);
            let secret = SecretBytes::new(format!("token-{number}").into_bytes());
            Ok(Token::new(&secret, Duration::from_secs(1_000)).unwrap())
        }
    }

    #[test]
    fn a_file_with_credentials_that_others_can_read_is_noticed() {
        use std::os::unix::fs::PermissionsExt as _;
        let file = tempfile::NamedTempFile::new().unwrap();
        for (mode, is_open) in [(0o600, false), (0o604, true), (0o644, true)] {
            file.as_file().set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(warn_of_readers("credentials_file", file.path()), is_open, "{mode:o}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_fetched_once_and_replaced_before_its_end_or_when_it_is_refused() {
        let source = Counted::default();
        let (fetched, fails) = (Arc::clone(&source.fetched), Arc::clone(&source.fails));
        let tokens = Tokens::new(Box::new(source));
        let client = Client::new("main", None, true).unwrap();
        let get = || tokens.get(&client, Duration::from_secs(1));
        let (one, two, three) = tokio::join!(get(), get(), get());
        let (one, two) = (one.unwrap(), two.unwrap());
        assert!(Arc::ptr_eq(&one, &two) && three.is_ok());
        assert_eq!(fetched.load(SeqCst), 1);
        tokio::time::advance(Duration::from_secs(770)).await;
        assert!(Arc::ptr_eq(&get().await.unwrap(), &one));
        tokio::time::advance(Duration::from_secs(10)).await;
        let next = get().await.unwrap();
        assert_eq!(next.header().as_bytes(), b"Bearer token-1");
        // A token that another call has replaced is not forgotten.
        tokens.refused(&one);
        assert!(Arc::ptr_eq(&get().await.unwrap(), &next));
        tokens.refused(&next);
        let last = get().await.unwrap();
        assert_eq!(fetched.load(SeqCst), 3);
        // Its source fails: it is used until its end.
        fails.store(true, SeqCst);
        tokio::time::advance(Duration::from_secs(900)).await;
        assert!(Arc::ptr_eq(&get().await.unwrap(), &last));
        tokio::time::advance(Duration::from_secs(101)).await;
        let failure = get().await.err().unwrap();
        assert_eq!(failure.error, Error::Away("no credentials: test".to_owned()));
    }
}
