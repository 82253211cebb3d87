//! The current token: obtained, renewed, and replaced when it is refused. There is only one login
//! or renewal at a time, however many calls wait for it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Mutex as AsyncMutex, Notify};

use crate::root::Error;
use crate::secret::SecretBytes;

use super::client::{Call, Client};
use super::login::{Login, Secret};
use super::login_backoff::LoginBackoff;
use super::token::{Grant, Lookup, Token, TokenTtl};

/// How long a token whose policy denies access is kept before another login is tried: the server
/// has to store the token of each login.
const LOGIN_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The pause after a failed renewal or login.
const PAUSE: Duration = Duration::from_secs(5);

/// A token, and how to get another one.
pub(super) struct Session {
    /// The root's name, for the log.
    root: String,
    client: Arc<Client>,
    login: Login,
    current: Mutex<Option<Arc<Token>>>,
    /// Held while a token is obtained or renewed.
    turn: AsyncMutex<LoginBackoff>,
    changed: Notify,
}

impl Session {
    pub(super) fn new(root: &str, client: Arc<Client>, login: Login) -> Self {
        Self {
            root: root.to_owned(),
            client,
            login,
            current: Mutex::default(),
            turn: AsyncMutex::default(),
            changed: Notify::new(),
        }
    }

    /// The token for a call.
    ///
    /// # Errors
    /// [`Error::Away`].
    pub(super) async fn token(&self) -> Result<Arc<Token>, Error> {
        if let Some(token) = self.usable().await {
            return Ok(token);
        }
        let mut turn = self.turn.lock().await;
        // The previous holder of the turn may have done it.
        if let Some(token) = self.usable().await {
            return Ok(token);
        }
        let Some(token) = self.current() else { return self.obtain(&mut turn).await };
        if self.is_replaced(&token).await {
            return self.obtain(&mut turn).await.or_else(|error| self.bear(&token, error));
        }
        if token.is_renewable() {
            self.renew(&token, &mut turn).await
        } else {
            self.succeed(&token, &mut turn).await
        }
    }

    /// Another token to try after `refused` was refused; `None` if there is no other.
    ///
    /// # Errors
    /// [`Error::Away`].
    pub(super) async fn another(&self, refused: &Token) -> Result<Option<Arc<Token>>, Error> {
        let mut turn = self.turn.lock().await;
        if let Some(token) = self.current().filter(|token| token.secret != refused.secret) {
            return Ok(Some(token));
        }
        match &self.login {
            Login::Token(Secret::Given(_)) => Ok(None),
            Login::Token(Secret::File(_)) => {
                let token = self.obtain(&mut turn).await?;
                Ok(Some(token).filter(|token| token.secret != refused.secret))
            }
            Login::AppRole { .. } => {
                let is_new = refused.since.elapsed() < LOGIN_AGAIN_AFTER;
                if is_new && self.ttl_of(&refused.secret).await?.is_some() {
                    return Ok(None);
                }
                self.obtain(&mut turn).await.map(Some)
            }
        }
    }

    /// What it means that `token` was refused, if there is no other one.
    pub(super) async fn refusal(&self, token: &Token, path: &str) -> Error {
        // A new token of a role is valid even if it has no permission to look itself up.
        let is_new = matches!(self.login, Login::AppRole { .. })
            && token.since.elapsed() < LOGIN_AGAIN_AFTER;
        match self.ttl_of(&token.secret).await {
            Ok(ttl) if ttl.is_some() || is_new => {
                Error::Denied(format!("policy denied: the token is valid, and may not call {path}"))
            }
            Ok(_) => {
                let mut current = self.current.lock();
                // Another login may help; a configured token can only be replaced.
                if current.as_ref().is_some_and(|current| current.secret == token.secret) {
                    *current = None;
                }
                Error::Away(
                    "the token is not valid: it has expired, was revoked, or may not even look \
                     itself up; set another one"
                        .to_owned(),
                )
            }
            Err(error) => error,
        }
    }

    /// Renews the token in time, as long as it is polled: the calls of a root may be days apart.
    pub(super) async fn keep(&self) {
        let mut failing = false;
        loop {
            let changed = self.changed.notified();
            match self.current().and_then(|token| token.due()) {
                Some(due) => tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    () = changed => continue,
                },
                None => {
                    changed.await;
                    continue;
                }
            }
            match self.token().await {
                Ok(_) => failing = false,
                Err(error) => {
                    if !failing {
                        tracing::warn!(root = self.root, %error, "can't get a token; retrying");
                    }
                    failing = true;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// The remaining lifetime of the current token.
    pub(super) fn expires_in(&self) -> Option<Duration> {
        self.current().and_then(|token| token.expires_in())
    }

    fn current(&self) -> Option<Arc<Token>> {
        self.current.lock().clone()
    }

    fn put(&self, token: Token) -> Arc<Token> {
        let token = Arc::new(token);
        *self.current.lock() = Some(Arc::clone(&token));
        self.changed.notify_waiters();
        token
    }

    /// The current token, if it needs no renewal.
    async fn usable(&self) -> Option<Arc<Token>> {
        let token = self.current().filter(|token| !token.is_due())?;
        if self.is_replaced(&token).await { None } else { Some(token) }
    }

    /// Whether the file contains another token now. An unreadable file replaces nothing.
    async fn is_replaced(&self, token: &Token) -> bool {
        let Login::Token(secret @ Secret::File(_)) = &self.login else { return false };
        secret.read().await.is_ok_and(|secret| secret != token.secret)
    }

    /// Renews the token, and gets a new one if that is refused or extends it too little.
    async fn renew(
        &self,
        token: &Arc<Token>,
        backoff: &mut LoginBackoff,
    ) -> Result<Arc<Token>, Error> {
        let call = Call::post("auth/token/renew-self".to_owned(), &NOTHING)?;
        let answer = match self.client.send(&call, Some(&token.secret)).await {
            Ok(answer) => answer,
            Err(error) => return self.bear(token, error),
        };
        if answer.status.is_success() {
            let renewed = answer.read::<Grant<'_>>()?.auth;
            let token = self.put(token.renewed(renewed.lease_duration, renewed.renewable));
            tracing::debug!(root = self.root, seconds = token.left(), "the token was renewed");
            if !token.shrinks() {
                return Ok(token);
            }
            return self.succeed(&token, backoff).await;
        }
        self.succeed(token, backoff).await
    }

    /// Replaces a token that can't be renewed.
    async fn succeed(
        &self,
        token: &Arc<Token>,
        backoff: &mut LoginBackoff,
    ) -> Result<Arc<Token>, Error> {
        match &self.login {
            Login::AppRole { .. } => {
                self.obtain(backoff).await.or_else(|error| self.bear(token, error))
            }
            Login::Token(_) => Ok(self.leave_alone(token)),
        }
    }

    /// Continues with `token` until it expires, although it could not be renewed.
    fn bear(&self, token: &Arc<Token>, error: Error) -> Result<Arc<Token>, Error> {
        if token.has_ended() {
            return Err(error);
        }
        let seconds = token.left();
        tracing::warn!(root = self.root, %error, seconds, "the token could not be renewed yet");
        Ok(self.put(token.postponed()))
    }

    /// Warns in time that a configured token expires: there is no other one.
    fn leave_alone(&self, token: &Token) -> Arc<Token> {
        tracing::warn!(
            root = self.root,
            seconds = token.left(),
            "the token is about to expire and can't be renewed any further: set another one"
        );
        self.put(token.left_alone())
    }

    /// Gets a token from its source.
    async fn obtain(&self, backoff: &mut LoginBackoff) -> Result<Arc<Token>, Error> {
        match &self.login {
            Login::Token(secret) => {
                let secret = secret.read().await?;
                // A token without permission for lookup-self may still be allowed to use the key.
                Ok(self.put(match self.ttl_of(&secret).await? {
                    Some(TokenTtl { ttl, renewable }) => Token::new(secret, ttl, renewable),
                    None => Token::unknown(secret),
                }))
            }
            Login::AppRole { mount, role_id, secret_id } => {
                let secret = secret_id.read().await?;
                backoff.check(&secret)?;
                let path = format!("auth/{mount}/login");
                let secret_id = str::from_utf8(secret.expose()).unwrap_or_default();
                let call = Call::post(path, &LoginBody { role_id, secret_id })?;
                let call = call.with_secret(secret.expose());
                let answer = self.client.send(&call, None).await?;
                if !answer.status.is_success() {
                    return Err(backoff.refuse(secret, mount, &answer));
                }
                backoff.succeeded();
                let auth = answer.read::<Grant<'_>>()?.auth;
                let token = SecretBytes::new(auth.client_token.as_bytes().to_vec());
                tracing::debug!(root = self.root, seconds = auth.lease_duration, "logged in");
                Ok(self.put(Token::new(Arc::new(token), auth.lease_duration, auth.renewable)))
            }
        }
    }

    /// Looks up the token itself; `None` if that is refused.
    async fn ttl_of(&self, token: &SecretBytes) -> Result<Option<TokenTtl>, Error> {
        let call = Call::get("auth/token/lookup-self".to_owned());
        let answer = self.client.send(&call, Some(token)).await?;
        if !answer.status.is_success() {
            return Ok(None);
        }
        answer.read::<Lookup>().map(|lookup| Some(lookup.data))
    }
}

#[derive(Serialize)]
struct LoginBody<'a> {
    role_id: &'a str,
    secret_id: &'a str,
}

/// An empty JSON object.
#[derive(Serialize)]
struct Nothing {}
const NOTHING: Nothing = Nothing {};
