//! kms-proxy.
pub mod aead;
pub mod clock;
pub mod envelope;
pub mod id;
pub mod random;
pub mod root;
pub mod secret;
pub mod store;
