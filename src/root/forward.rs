//! AWS KMS for the calls of other programs: a body goes to it, and its response comes back, unread.
//!
//! The contract only, so that it exists in every build; `aws_kms` fulfils it.

use async_trait::async_trait;
use zeroize::Zeroizing;

use super::Error;

/// A response of AWS KMS.
pub(crate) struct Response {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The JSON text; it may contain a plaintext.
    pub(crate) body: Zeroizing<Vec<u8>>,
}

/// AWS KMS, called with the credentials of this service.
#[async_trait]
pub(crate) trait Kms: Send + Sync + 'static {
    /// Calls `operation`, such as `Decrypt`, with `body` as its JSON text. An error of KMS is a
    /// response as well.
    ///
    /// # Errors
    /// [`Error::Away`] when KMS did not respond.
    async fn call(&self, operation: &str, body: Zeroizing<Vec<u8>>) -> Result<Response, Error>;
}
