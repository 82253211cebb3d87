//! Refused logins: why the last one was refused, and when the same secret may be sent again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::root::Error;
use crate::secret::SecretBytes;

use super::client::Answer;

/// The waits after refused logins. Servers lock a role out after five of them.
const REFUSED_FOR: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(300),
];

/// Remembers the last refused login.
#[derive(Default)]
pub(super) struct LoginBackoff {
    last: Option<Refused>,
}

/// A login that was refused.
struct Refused {
    secret: Arc<SecretBytes>,
    detail: String,
    until: Instant,
    times: usize,
}

impl LoginBackoff {
    /// Whether `secret` may be sent now.
    ///
    /// # Errors
    /// The reason of the last refusal.
    pub(super) fn check(&self, secret: &SecretBytes) -> Result<(), Error> {
        let last = self.last.as_ref();
        let last = last.filter(|last| *last.secret == *secret && Instant::now() < last.until);
        last.map_or(Ok(()), |last| Err(Error::Away(last.detail.clone())))
    }

    /// A login succeeded.
    pub(super) fn succeeded(&mut self) {
        self.last = None;
    }

    /// Remembers a refused login, and returns the reason.
    pub(super) fn refuse(
        &mut self,
        secret: Arc<SecretBytes>,
        mount: &str,
        answer: &Answer,
    ) -> Error {
        let reasons = answer.reasons();
        let tells = |part| reasons.as_ref().is_some_and(|reasons| reasons.tell(part));
        let detail = match answer.status.as_u16() {
            400 if tells("invalid role or secret ID") || tells("invalid secret id") => {
                "it can't log in: the role id or the secret id is not accepted".to_owned()
            }
            // Without a login, a missing mount is reported in the same way.
            403 | 404 => format!(
                "it can't log in: permission denied; is AppRole mounted at auth/{mount}, and the \
                 role neither locked out after wrong secret ids nor bound to other addresses?"
            ),
            status => {
                let reasons = reasons.map(|reasons| reasons.to_string()).unwrap_or_default();
                format!("it can't log in: {status} {reasons}").trim_end().to_owned()
            }
        };
        let times = self.last.as_ref().filter(|last| last.secret == secret);
        let times = times.map_or(0, |last| last.times + 1);
        let [.., longest] = REFUSED_FOR;
        let until = Instant::now() + REFUSED_FOR.get(times).copied().unwrap_or(longest);
        self.last = Some(Refused { secret, detail: detail.clone(), until, times });
        Error::Away(detail)
    }
}
