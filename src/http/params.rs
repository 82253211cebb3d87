//! The parts of a path.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;

use crate::service::error::Error;

use super::body;

/// The parameters of the path.
pub(super) fn path<T>(path: Result<Path<T>, PathRejection>) -> Result<T, Error> {
    path.map(|Path(parts)| parts).map_err(|_| body::invalid("the path is not UTF-8"))
}
