//! What a start waits for, before there is a [`KeyService`](super::KeyService): shown by readiness
//! and by the status page, and returned to every call.

use parking_lot::Mutex;

use super::error::{Error, Kind};
use super::types::{Check, Health};

/// What a start waits for at the moment.
pub struct Starting(Mutex<Check>);

impl Default for Starting {
    fn default() -> Self {
        Self(Mutex::new(check("service", "nothing is loaded yet")))
    }
}

impl Starting {
    /// Sets what the start waits for: the name of a check, and a detail for operators. True when it
    /// differs from before, so that it is logged once.
    pub fn report(&self, name: &str, detail: &str) -> bool {
        let new = check(name, detail);
        let mut current = self.0.lock();
        let is_new = *current != new;
        *current = new;
        is_new
    }

    /// What the start waits for.
    #[must_use]
    pub fn check(&self) -> Check {
        self.0.lock().clone()
    }

    /// The error of every call until the service has started.
    #[must_use]
    pub fn error(&self) -> Error {
        let Check { name, detail, .. } = self.check();
        Error::new(
            Kind::StoreUnavailable,
            "the service is starting; /readyz says what it waits for",
        )
        .with_advice(format!("{name}: {}", detail.unwrap_or_default()))
    }

    /// The same error for a caller who may see what the start waits for.
    #[must_use]
    pub fn explained(&self) -> Error {
        let Check { name, detail, .. } = self.check();
        let detail = detail.unwrap_or_default();
        let awaited = match &*name {
            "service" => detail,
            name => format!("it waits for {name}: {detail}"),
        };
        Error::new(Kind::StoreUnavailable, format!("the service is starting; {awaited}"))
    }
}

fn check(name: &str, detail: &str) -> Check {
    Check { name: name.to_owned(), health: Health::Down, detail: Some(detail.to_owned()) }
}
