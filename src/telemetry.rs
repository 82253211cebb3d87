//! Logs: to come.
