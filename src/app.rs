//! The composition root: to come.
