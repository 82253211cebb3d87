//! The messages of Kubernetes' KMS v2 as they are sent: package `v2`, service
//! `KeyManagementService`.
//!
//! Written by hand: three calls are not worth a compiler of protocol buffers in every build.
//! `tests/kubernetes/kms.proto` is the original, from which the tests make their client.

use std::collections::HashMap;

/// The path of `Status`.
pub(super) const STATUS: &str = "/v2.KeyManagementService/Status";
/// The path of `Encrypt`.
pub(super) const ENCRYPT: &str = "/v2.KeyManagementService/Encrypt";
/// The path of `Decrypt`.
pub(super) const DECRYPT: &str = "/v2.KeyManagementService/Decrypt";

/// Nothing.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct StatusRequest {}

/// How the plugin stands.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct StatusResponse {
    /// `v2`.
    #[prost(string, tag = "1")]
    pub(super) version: String,
    /// `ok`, or what is wrong.
    #[prost(string, tag = "2")]
    pub(super) healthz: String,
    /// The key that Encrypt uses now.
    #[prost(string, tag = "3")]
    pub(super) key_id: String,
}

/// What is to be encrypted. No `Debug` of prost's: it would show the plaintext.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct EncryptRequest {
    /// A seed, as a rule.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) plaintext: Vec<u8>,
    /// Of this call, for the log.
    #[prost(string, tag = "2")]
    pub(super) uid: String,
}

/// What is stored.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct EncryptResponse {
    /// The envelope.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) ciphertext: Vec<u8>,
    /// The key that was used.
    #[prost(string, tag = "2")]
    pub(super) key_id: String,
    /// What else is stored with it.
    #[prost(map = "string, bytes", tag = "3")]
    pub(super) annotations: HashMap<String, Vec<u8>>,
}

/// What is to be decrypted.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct DecryptRequest {
    /// The envelope.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) ciphertext: Vec<u8>,
    /// Of this call, for the log.
    #[prost(string, tag = "2")]
    pub(super) uid: String,
    /// As Encrypt gave it.
    #[prost(string, tag = "3")]
    pub(super) key_id: String,
    /// As Encrypt gave them.
    #[prost(map = "string, bytes", tag = "4")]
    pub(super) annotations: HashMap<String, Vec<u8>>,
}

/// What was decrypted.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct DecryptResponse {
    /// The seed.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) plaintext: Vec<u8>,
}

impl std::fmt::Debug for EncryptRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncryptRequest").field("uid", &self.uid).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for DecryptResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecryptResponse").finish_non_exhaustive()
    }
}

impl Drop for EncryptRequest {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.plaintext);
    }
}

impl Drop for DecryptResponse {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.plaintext);
    }
}
