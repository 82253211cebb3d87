//! The audit log: which calls were made, by whom, and proof that nobody changed the record.
//!
//! The format of the proof, its keys and the tools that read the log know lines of bytes, and
//! nothing about requests and chains.

pub mod find;
pub mod keys;
pub mod line;
pub mod note;
pub mod sealer;
pub mod secret;
pub mod tree;
pub mod verify;
