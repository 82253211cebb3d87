//! Maps the errors of Azure to the few errors that a caller can act on.
//!
//! Messages of Azure are passed on only for statuses whose messages name keys and identities: for a
//! bad parameter they may repeat it. A server that is not Azure may do so for any status, so each
//! text passes `Response::line` as well.

use std::borrow::Cow;

use serde::Deserialize;

use crate::root::Error;
use crate::root::cloud::attempts::{Failure, Retry};
use crate::root::cloud::http::Response;

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    error: Details<'a>,
}

#[derive(Deserialize)]
struct Details<'a> {
    #[serde(borrow, default)]
    code: Cow<'a, str>,
    #[serde(borrow, default)]
    message: Cow<'a, str>,
    #[serde(borrow, default)]
    innererror: Option<Inner<'a>>,
}

#[derive(Deserialize)]
struct Inner<'a> {
    #[serde(borrow, default)]
    code: Cow<'a, str>,
}

/// Which call failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Wrap,
    Unwrap,
}

/// What a response that is not a success means.
pub(super) fn of(call: Call, response: &Response) -> Failure {
    let Some(Body { error }) = response.read::<Body<'_>>() else {
        return not_azure_but(response.status);
    };
    let inner = error.innererror.as_ref().map(|inner| &*inner.code).unwrap_or_default();
    let code = response.line(if inner.is_empty() { &error.code } else { inner });
    let told = match &*error.message {
        "" => String::new(),
        message => format!("; Azure says: {}", response.line(message)),
    };
    let verb = if call == Call::Wrap { "wrapKey" } else { "unwrapKey" };
    Failure::never(match response.status {
        401 => {
            Error::Away(format!("{code}: Azure does not accept the token: renew the credentials"))
        }
        429 => {
            let detail = format!("{code}: throttled: the vault's limit of operations is reached");
            return Failure { error: Error::Away(detail), retry: retry(response) };
        }
        408 | 500.. => {
            let detail = format!("{code}: Azure has an internal error; the call is retried");
            return Failure { error: Error::Away(detail), retry: retry(response) };
        }
        403 if code == "KeyDisabled" || error.message.contains("disabled key") => {
            Error::Denied(format!("{code}: the key, or this version of it, is disabled: enable it"))
        }
        403 if error.message.contains("expired") || error.message.contains("not yet valid") => {
            Error::Denied(format!("{code}: the key is expired or not valid yet{told}"))
        }
        403 => Error::Denied(format!(
            "{code}: allow {verb} with this key, to this identity, and its network{told}"
        )),
        404 | 409 => Error::Denied(format!(
            "{code}: there is no such key: check key_id, or recover the key if it was deleted{told}"
        )),
        400 if call == Call::Unwrap && error.code == "BadParameter" => {
            Error::Wrong("it is damaged, or was made by another key".to_owned())
        }
        _ => Error::Denied(format!(
            "{code}: Azure rejects the call as invalid: check algorithm, and that the key is of \
             that type and allows wrapKey and unwrapKey"
        )),
    })
}

fn retry(response: &Response) -> Retry {
    response.retry_after().map_or(Retry::Soon, Retry::After)
}

/// The key has no such version.
pub(super) fn no_version(version: &str) -> Failure {
    Failure::never(Error::Wrong(format!("the key has no version {version}")))
}

/// A response without the fields that Azure always returns.
pub(super) fn not_azure() -> Failure {
    not_azure_but(200)
}

pub(super) fn not_azure_but(status: u16) -> Failure {
    let detail = format!(
        "the server that answered with HTTP status {status} is not Azure Key Vault: check key_id, \
         and any proxies"
    );
    // The pages of load balancers during an outage.
    if status >= 500 || status == 429 {
        return Failure::soon(detail);
    }
    Failure::never(Error::Away(detail))
}
