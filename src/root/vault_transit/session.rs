//! The token that calls are made with: got, renewed, and replaced when it is refused. One login or
//! renewal at a time, however many calls wait for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Mutex as AsyncMutex, Notify};

use crate::root::Error;
use crate::secret::SecretBytes;

use super::client::{Call, Client};
use super::login::{Login, Secret};
use super::refusals::Refusals;
use super::token::{Grant, Lookup, Standing, Token};

/// How long a policy that says no is believed before another login is tried for it: each login
/// makes a token that the server has to keep.
const LOGIN_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// How long the keeper waits after it could not renew or log in.
const PAUSE: Duration = Duration::from_secs(5);

/// A token, and how to come by another one.
pub(super) struct Session {
    /// The root's name, for the log.
    root: String,
    client: Arc<Client>,
    login: Login,
    current: Mutex<Option<Arc<Token>>>,
    /// Held while a token is got or renewed.
    turn: AsyncMutex<Refusals>,
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

    /// The token to call with.
    ///
    /// # Errors
    /// [`Error::Away`].
    pub(super) async fn token(&self) -> Result<Arc<Token>, Error> {
        if let Some(token) = self.usable().await {
            return Ok(token);
        }
        let mut turn = self.turn.lock().await;
        // Whoever had the turn before may have been as far.
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

    /// A token to try in place of one that was refused; `None` when there is no other.
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
                if is_new && self.standing(&refused.secret).await?.is_some() {
                    return Ok(None);
                }
                self.obtain(&mut turn).await.map(Some)
            }
        }
    }

    /// What it means that `token` was refused, and no other is to be had.
    pub(super) async fn refusal(&self, token: &Token, path: &str) -> Error {
        // A role's token that may not look itself up is valid none the less when it is new.
        let is_new = matches!(self.login, Login::AppRole { .. })
            && token.since.elapsed() < LOGIN_AGAIN_AFTER;
        match self.standing(&token.secret).await {
            Ok(standing) if standing.is_some() || is_new => {
                Error::Denied(format!("policy denied: the token is valid, and may not call {path}"))
            }
            Ok(_) => {
                let mut current = self.lock();
                // A login that is tried anew may help; a token that is given can only be replaced.
                if current.as_ref().is_some_and(|current| current.secret == token.secret) {
                    *current = None;
                }
                Error::Away(
                    "the token is not valid: it has expired, was revoked, or may not even look \
                     itself up; give another one"
                        .to_owned(),
                )
            }
            Err(error) => error,
        }
    }

    /// Renews in time, for as long as it is polled: calls of a root may be days apart.
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
                        tracing::warn!(root = self.root, %error, "no token can be had; it is tried again");
                    }
                    failing = true;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Token>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Option<Arc<Token>> {
        self.lock().clone()
    }

    fn put(&self, token: Token) -> Arc<Token> {
        let token = Arc::new(token);
        *self.lock() = Some(Arc::clone(&token));
        self.changed.notify_waiters();
        token
    }

    /// The current token, if nothing is to be done about it.
    async fn usable(&self) -> Option<Arc<Token>> {
        let token = self.current().filter(|token| !token.is_due())?;
        if self.is_replaced(&token).await { None } else { Some(token) }
    }

    /// Whether the file holds another token by now. One that can't be read replaces nothing.
    async fn is_replaced(&self, token: &Token) -> bool {
        let Login::Token(secret @ Secret::File(_)) = &self.login else { return false };
        secret.read().await.is_ok_and(|secret| secret != token.secret)
    }

    /// Renews, and gets a new token when that is refused or gives too little.
    async fn renew(
        &self,
        token: &Arc<Token>,
        refusals: &mut Refusals,
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
            return self.succeed(&token, refusals).await;
        }
        self.succeed(token, refusals).await
    }

    /// Gets a token in place of one that can't be kept.
    async fn succeed(
        &self,
        token: &Arc<Token>,
        refusals: &mut Refusals,
    ) -> Result<Arc<Token>, Error> {
        match &self.login {
            Login::AppRole { .. } => {
                self.obtain(refusals).await.or_else(|error| self.bear(token, error))
            }
            Login::Token(_) => Ok(self.leave_alone(token)),
        }
    }

    /// Goes on with `token` although it could not be renewed, while it lives.
    fn bear(&self, token: &Arc<Token>, error: Error) -> Result<Arc<Token>, Error> {
        if token.has_ended() {
            return Err(error);
        }
        tracing::warn!(root = self.root, %error, seconds = token.left(), "the token could not be renewed yet");
        Ok(self.put(token.postponed()))
    }

    /// A token that was given is all there is: its end is said in time.
    fn leave_alone(&self, token: &Token) -> Arc<Token> {
        tracing::warn!(
            root = self.root,
            seconds = token.left(),
            "the token ends, and can be renewed no further: give another one"
        );
        self.put(token.left_alone())
    }

    /// A token from where tokens come from.
    async fn obtain(&self, refusals: &mut Refusals) -> Result<Arc<Token>, Error> {
        match &self.login {
            Login::Token(secret) => {
                let secret = secret.read().await?;
                // Whoever may not look itself up may still be good for what it is here for.
                Ok(self.put(match self.standing(&secret).await? {
                    Some(Standing { ttl, renewable }) => Token::new(secret, ttl, renewable),
                    None => Token::unknown(secret),
                }))
            }
            Login::AppRole { mount, role_id, secret_id } => {
                let secret = secret_id.read().await?;
                refusals.check(&secret)?;
                let path = format!("auth/{mount}/login");
                let secret_id = str::from_utf8(secret.expose()).unwrap_or_default();
                let call = Call::post(path, &LoginBody { role_id, secret_id })?;
                let answer = self.client.send(&call, None).await?;
                if !answer.status.is_success() {
                    return Err(refusals.refuse(secret, mount, &answer));
                }
                refusals.succeeded();
                let auth = answer.read::<Grant<'_>>()?.auth;
                let token = SecretBytes::new(auth.client_token.as_bytes().to_vec());
                tracing::debug!(root = self.root, seconds = auth.lease_duration, "logged in");
                Ok(self.put(Token::new(Arc::new(token), auth.lease_duration, auth.renewable)))
            }
        }
    }

    /// What a token hears of itself; `None` when it is refused.
    async fn standing(&self, token: &SecretBytes) -> Result<Option<Standing>, Error> {
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
