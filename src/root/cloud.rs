//! What the roots in Google Cloud and Azure share: HTTP calls, attempts, access tokens and signed
//! JWTs. It knows neither of the two services.

pub(super) mod attempts;
#[cfg(test)]
#[path = "../../tests/it/support/clouds.rs"]
#[allow(dead_code, reason = "the integration tests and the other root use the rest")]
pub(super) mod fakes;
pub(super) mod http;
pub(super) mod jwt;
pub(super) mod tokens;
