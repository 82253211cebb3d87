//! What the roots in Google Cloud and Azure share: HTTP calls, attempts, access tokens and signed
//! JWTs. It knows neither of the two services.

pub(super) mod attempts;
pub(super) mod http;
pub(super) mod jwt;
pub(super) mod tokens;
