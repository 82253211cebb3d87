//! kms-proxy.
pub mod aead;
pub mod clock;
pub mod envelope;
pub mod http;
pub mod id;
pub mod keychain;
pub mod metrics;
pub mod random;
pub mod root;
pub mod secret;
pub mod service;
pub mod store;
