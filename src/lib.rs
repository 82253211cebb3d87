//! kms-proxy.
pub mod aead;
pub mod app;
pub mod clock;
pub mod config;
pub mod envelope;
mod files;
pub mod http;
pub mod id;
pub mod keychain;
pub mod metrics;
pub mod random;
pub mod root;
pub mod saved;
pub mod secret;
pub mod service;
pub mod store;
pub mod telemetry;
pub mod units;
