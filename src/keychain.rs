//! stub
pub mod message;
