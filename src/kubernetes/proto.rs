//! The messages of Kubernetes' KMS v2: package `v2`, service `KeyManagementService`.
//!
//! They are written by hand: three calls are not worth a compiler of protocol buffers in every
//! build. The tests generate their client from the original, `tests/kubernetes/kms.proto`.

use std::collections::HashMap;

/// The path of `Status`.
pub(super) const STATUS: &str = "/v2.KeyManagementService/Status";
/// The path of `Encrypt`.
pub(super) const ENCRYPT: &str = "/v2.KeyManagementService/Encrypt";
/// The path of `Decrypt`.
pub(super) const DECRYPT: &str = "/v2.KeyManagementService/Decrypt";

/// The request of Status, which has no fields.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct StatusRequest {}

/// The health of the plugin.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct StatusResponse {
    /// `v2`.
    #[prost(string, tag = "1")]
    pub(super) version: String,
    /// `ok`, or the problem.
    #[prost(string, tag = "2")]
    pub(super) healthz: String,
    /// The key id that Encrypt uses now.
    #[prost(string, tag = "3")]
    pub(super) key_id: String,
}

/// A request to encrypt. Its `Debug` is not derived, since that would show the plaintext.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct EncryptRequest {
    /// Usually a seed.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) plaintext: Vec<u8>,
    /// The id of this call, for the log.
    #[prost(string, tag = "2")]
    pub(super) uid: String,
}

/// The values that kube-apiserver stores.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct EncryptResponse {
    /// The envelope.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) ciphertext: Vec<u8>,
    /// The key id of the envelope.
    #[prost(string, tag = "2")]
    pub(super) key_id: String,
    /// Further values to store with it.
    #[prost(map = "string, bytes", tag = "3")]
    pub(super) annotations: HashMap<String, Vec<u8>>,
}

/// A request to decrypt.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct DecryptRequest {
    /// The envelope.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) ciphertext: Vec<u8>,
    /// The id of this call, for the log.
    #[prost(string, tag = "2")]
    pub(super) uid: String,
    /// The key id that Encrypt returned.
    #[prost(string, tag = "3")]
    pub(super) key_id: String,
    /// The annotations that Encrypt returned.
    #[prost(map = "string, bytes", tag = "4")]
    pub(super) annotations: HashMap<String, Vec<u8>>,
}

/// The result of Decrypt.
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
