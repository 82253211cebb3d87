//! What an error of `object_store` means for an archive.
//!
//! A missing bucket answers with 404 as a missing object does. The provider's code
//! distinguishes them, so a mistyped or deleted bucket is not taken for an empty archive.

use object_store::Error as Cloud;

use crate::archive::Error;
use crate::error_chain;

/// What S3, Google and Azure say about a bucket that does not exist.
const NO_BUCKET: [&str; 3] = ["NoSuchBucket", "bucket does not exist", "ContainerNotFound"];

/// The longest text of a provider that is repeated, in characters.
const LONGEST: usize = 400;

/// Whether there is no such object, in a bucket that exists.
pub(super) fn is_absent(error: &Cloud) -> bool {
    matches!(error, Cloud::NotFound { .. }) && !lacks_bucket(error)
}

/// Whether the condition of a write did not hold.
pub(super) fn is_conflict(error: &Cloud) -> bool {
    match error {
        Cloud::AlreadyExists { .. } | Cloud::NotModified { .. } => true,
        // The crate reports a missing object, and thus a missing bucket, as this as well.
        Cloud::Precondition { .. } | Cloud::NotFound { .. } => !lacks_bucket(error),
        _ => false,
    }
}

/// The error of a call to the archive at `url`.
pub(super) fn failed(url: &str, error: &Cloud) -> Error {
    if lacks_bucket(error) {
        return Error::Denied(format!("{url}: there is no such bucket"));
    }
    let text = error_chain::to_text(error);
    let short: String = text.replace('\n', " ").chars().take(LONGEST).collect();
    let detail = format!("{url}: {short}");
    match error {
        Cloud::PermissionDenied { .. } | Cloud::Unauthenticated { .. } => Error::Denied(detail),
        _ => Error::Unavailable(detail),
    }
}

fn lacks_bucket(error: &Cloud) -> bool {
    let text = error_chain::to_text(error);
    NO_BUCKET.iter().any(|said| text.contains(said))
}
