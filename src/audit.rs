//! The audit log: which calls were made, by whom, and proof that nobody changed the record.
//!
//! This file lists the parts. The format of the file, its keys and the tools that read it are here;
//! they know lines of bytes, and nothing about requests, chains or stores.

pub mod keys;
pub mod line;
pub mod note;
pub mod sealer;
pub mod tree;
