//! The response of a listener that does not serve the status page: 404, with the one that does.
//!
//! It asks for no identity, and knows nothing of a service.

use axum::Router;
use axum::routing::any;

use super::super::problem;

const AT_ADMIN: &str = "the status page is served at the address of server.admin_listen";
const IS_OFF: &str =
    "the status page is served at the address of server.listen, since admin.status is false";
const NO_LOOPBACK: &str = "the status page is served at the address of server.listen, since \
                           server.admin_listen is not a loopback address; admin.status = true \
                           serves it here";

/// The paths of the status page where it is not served. `is_at_admin` says where it is, and `set`
/// what the configuration says about that.
pub(in crate::http) fn routes(is_at_admin: bool, set: Option<bool>) -> Router {
    let why = match (is_at_admin, set) {
        (true, _) => AT_ADMIN,
        (false, Some(_)) => IS_OFF,
        (false, None) => NO_LOOPBACK,
    };
    let refuse = move || async move { problem::nothing(why) };
    Router::new()
        .route("/", any(refuse))
        .route("/status", any(refuse))
        .route("/status.json", any(refuse))
        .route("/status/chains/{name}", any(refuse))
}
