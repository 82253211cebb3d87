//! The secrets that a call sends: the KEK, and the session token that the SDK adds. It makes no
//! call.

use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_kms::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_kms::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kms::error::BoxError;

use crate::root::echo::Secrets;

/// The header with the session token of temporary credentials.
const TOKEN: &str = "x-amz-security-token";

/// What one call sends.
#[derive(Clone, Default)]
pub(super) struct Sent(Arc<Mutex<Secrets>>);

impl std::fmt::Debug for Sent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sent")
    }
}

impl Sent {
    pub(super) fn new(secrets: Secrets) -> Self {
        Self(Arc::new(Mutex::new(secrets)))
    }

    /// What was sent so far.
    pub(super) fn secrets(&self) -> Secrets {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Intercept for Sent {
    fn name(&self) -> &'static str {
        "sent secrets"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(token) = context.request().headers().get(TOKEN) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).add(token.as_bytes());
        }
        Ok(())
    }
}
