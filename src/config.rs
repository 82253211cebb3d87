//! The configuration: to come.
