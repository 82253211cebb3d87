//! Encryption under a key chain: one call of an expensive root key pays for millions of messages.
//!
//! ```
//! use kms_proxy::KeyChain;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let chain = KeyChain::new()?;
//! let envelope = chain.encrypt(b"hello", b"row 7")?;
//! assert_eq!(chain.decrypt(&envelope, b"row 7")?.as_slice(), b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! Every plaintext is encrypted under a fresh key, that key is wrapped by the chain's primary KEK,
//! and only KEKs are wrapped by a root key: a passphrase, a key in AWS KMS, in an HSM, or in Vault
//! or OpenBao, a key file for development, or any implementation of [`RootKey`]. The program
//! `kms-proxy` offers this over HTTP; this crate is the same without the HTTP.
//!
//! | word | meaning |
//! | --- | --- |
//! | root key | an external key that wraps KEKs; it never sees user data |
//! | key chain | a named set of KEKs, one of them primary, with a limit of uses for each |
//! | KEK | wraps DEKs. The primary encrypts; the older ones only decrypt |
//! | DEK | a fresh random key, used for exactly one plaintext |
//! | envelope | what is stored: a header (KEK id, wrapped DEK) and a payload (the ciphertext) |
//! | AAD | bytes that are authenticated and not stored: the same bytes are needed to decrypt |
//! | use | one DEK wrapped under a KEK: what the limits count |
//!
//! To *rotate* is to make a new primary KEK; to *rewrap* is to move an envelope's DEK to it.
//!
//! # Cargo features
//!
//! `default` is the whole program. A library needs less: with `default-features = false` this crate
//! is envelopes, key chains, exports, and the `local` and `passphrase` roots, without HTTP, gRPC or
//! a cloud SDK. Each feature adds to that, and none changes a default:
//!
//! | feature | adds |
//! | --- | --- |
//! | `aws-lc` | AES-GCM of AWS-LC for messages of 1 KiB and more; needs a C compiler |
//! | `aws-kms` | roots in AWS KMS |
//! | `azure-key-vault` | roots in Azure Key Vault and Managed HSM |
//! | `gcp-kms` | roots in Google Cloud KMS |
//! | `pkcs11` | roots in an HSM, through its PKCS#11 module |
//! | `vault-transit` | roots in the transit engine of Vault or OpenBao |
//! | `service` | `KeyService`: chains in a `file`, `inline` or `memory` store, rotation, limits |
//! | `etcd` | `service`, and the etcd store; needs `protoc`, see below |
//! | `archive-cloud` | `service`, and archives in S3, Google Cloud Storage and Azure |
//! | `kubernetes` | `service`, and the KMS v2 plugin of Kubernetes |
//! | `server` | `kubernetes`, and the program: HTTP, TLS, identities, configuration, command line |
//! | `otel` | `server`, and traces that the program exports with OTLP |
//!
//! The build of `etcd` runs `protoc`, the Protocol Buffers compiler: install it (Debian:
//! `protobuf-compiler`), or name one in the environment variable `PROTOC`. Nothing else needs it.
//!
//! A configuration that names a root or a store of a feature that is off is refused with an error
//! that names the feature.
//!
//! # Start with a new chain
//!
//! A [`KeyChain`] is synchronous and does no I/O. An envelope opens only with the AAD and in the
//! chain that it was made with:
//!
//! ```
//! use kms_proxy::{ChainName, DecryptError, KeyChain, Suite};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let orders = KeyChain::generate(ChainName::new("orders")?, Suite::Aes256Gcm)?;
//! let envelope = orders.encrypt(b"hello", b"row 7")?;
//!
//! assert_eq!(orders.decrypt(&envelope, b"row 8").unwrap_err(), DecryptError::Invalid);
//! # Ok(())
//! # }
//! ```
//!
//! # Rotate and rewrap
//!
//! Old envelopes still decrypt after a rotation. A rewrap needs only the header of an envelope, 62
//! bytes, or 78 in a chain of AES-256, however long the payload is:
//!
//! ```
//! use kms_proxy::KeyChain;
//! use kms_proxy::envelope::{Envelope, header_len};
//! # use kms_proxy::Suite;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let mut chain = KeyChain::new()?;
//! let mut envelope = chain.encrypt(b"a long text", b"row 7")?;
//! let primary = chain.rotate()?;
//!
//! let header = &mut envelope[..header_len(Suite::Aes128Gcm)];
//! let rewrapped = chain.rewrap(header)?;
//! header.copy_from_slice(&rewrapped);
//!
//! assert_eq!(Envelope::parse(&envelope)?.header.kek_id, primary);
//! assert_eq!(chain.decrypt(&envelope, b"row 7")?.as_slice(), b"a long text");
//! # Ok(())
//! # }
//! ```
//!
//! # Seal a long text
//!
//! [`stream`] seals and opens a plaintext of any length in constant memory, and reads any part of
//! it. An authenticated chunk has 16 KiB:
//!
//! ```
//! use std::io::{Cursor, Read, Seek, SeekFrom, Write};
//!
//! use kms_proxy::{KeyChain, stream};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let chain = KeyChain::new()?;
//! let mut sealing = stream::seal_to(&chain, Vec::new(), b"video 7")?;
//! for _ in 0..1000 {
//!     sealing.write_all(b"of a thousand parts; ")?;
//! }
//! let envelope = sealing.finish()?;
//!
//! let mut opened = stream::open_random(&chain, Cursor::new(envelope), b"video 7")?;
//! assert_eq!(opened.len(), 21_000);
//! let mut part = [0; 5];
//! opened.seek(SeekFrom::Start(500 * 21 + 14))?;
//! opened.read_exact(&mut part)?;
//! assert_eq!(&part, b"parts");
//! # Ok(())
//! # }
//! ```
//!
//! # Start from a reader
//!
//! A chain is exported to any [`io::Write`](std::io::Write), each of its KEKs wrapped by a
//! [`RootKey`], and read from any [`io::Read`](std::io::Read). The export takes half of the uses
//! that are left; [`export`] says why:
//!
//! ```
//! use kms_proxy::root::passphrase;
//! use kms_proxy::secret::SecretBytes;
//! use kms_proxy::{KeyChain, export};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let chain = KeyChain::new()?;
//! # let envelope = chain.encrypt(b"hello", b"row 7")?;
//! let root = passphrase::Root::new(SecretBytes::new(b"correct horse battery staple".to_vec()))?;
//! let mut file = Vec::new();
//! export::write_with_half_the_uses(&chain, &root, &mut file).await?;
//!
//! let chain = export::read(&root, &mut file.as_slice()).await?;
//! assert_eq!(chain.decrypt(&envelope, b"row 7")?.as_slice(), b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! # Start from an external KMS
//!
//! With the feature `aws-kms`, or likewise with `azure-key-vault`, `gcp-kms` or `vault-transit` and
//! its `Root`:
//!
#![cfg_attr(
    all(feature = "aws-kms", any(doc, doctest)),
    doc = concat!("```no_run\n", include_str!("../docs/library/kms.rs"), "```")
)]
//!
//! # Start a service
//!
//! A `KeyService` (feature `service`) keeps its chains in a store: it counts uses durably and over
//! all replicas, makes the next KEK before the limit or the age is reached, and has it wrapped by
//! every root. The program does this for its HTTP clients:
//!
#![cfg_attr(
    feature = "service",
    doc = r#"
```
use kms_proxy::{ChainName, KeyService, root};

# #[tokio::main]
# async fn main() -> Result<(), Box<dyn std::error::Error>> {
let service = KeyService::builder()
    .chain(ChainName::new("orders")?)
    .root("main", root::local::Root::generate()?) // a key in memory, for examples and tests
    .start()
    .await?;
let orders = service.chain("orders")?;

let encrypted = orders.encrypt(b"hello", b"row 7").await?;
orders.rotate().await?;
let decrypted = orders.decrypt(encrypted.envelope, b"row 7").await?;
assert_eq!(decrypted.plaintext.as_slice(), b"hello");
service.stop().await;
# Ok(())
# }
```
"#
)]
//!
//! # Start from an HSM
//!
//! With the features `service` and `pkcs11`:
//!
#![cfg_attr(
    all(feature = "pkcs11", feature = "service", any(doc, doctest)),
    doc = concat!("```no_run\n", include_str!("../docs/library/hsm.rs"), "```")
)]
//!
//! # Map
//!
//! | modules | what they own |
//! | --- | --- |
//! | [`id`], [`secret`], [`random`] | leaves: names, key bytes, randomness |
//! | [`aead`], [`clock`], [`timestamp`] | leaves: AES-GCM, time |
//! | [`human_units`], [`loopback`], [`error_chain`] | leaves: quantities, addresses, error texts |
//! | [`cobblestone`] | messages of any length in chunks |
//! | [`envelope`] | the wire format |
//! | [`keychain`] | chains in memory: seal, open, count uses, plan rotations |
//! | [`stream`] | envelopes of any length: from a reader, to a writer |
//! | [`root`] | the contract of a root key, and one file for each provider |
//! | [`export`] | a chain written under a root and read back |
//! | `store` | the contract of a store, the records in it, and one file for each kind |
//! | `archive` | copies of wrapped KEKs outside of the store, and one file for each kind |
//! | `metrics`, `telemetry` | what is counted, and how logs are written |
//! | `sigv4`, `json` | the signatures of AWS; the JSON of calls on data |
//! | `status` | what an operator sees of a service: data, findings, forecasts |
//! | `audit` | the record of who did what, and the proof that nobody changed it |
//! | `service` | chains, roots and a store joined: `KeyService` |
//! | `auth` | who calls, and what each caller may do |
//! | `tls` | certificates, handshakes, and who a client is by its certificate |
//! | `http`, `aws_api`, `kubernetes`, `config`, `app` | the server around it |
//!
//! A module imports only modules above or beside it in this table; a test enforces that.
//!
//! # Security
//!
//! Types that hold a key or a plaintext wipe it when they are dropped, and show it in no `Debug`,
//! error or log. Buffers of HTTP and of other libraries belong to the allocator: the program
//! `kms-proxy` has one that wipes what is freed; `SECURITY.md` has the whole list. The AES-GCM
//! nonces of a KEK are random, which is safe for 2^32 uses (NIST SP 800-38D); the limits here are
//! far below that, see [`keychain::UNSHARED_USES`]. A failed decryption does not say why it failed.
//! This crate contains no `unsafe` code.

// Some helpers are used only by modules that a feature adds.
#![cfg_attr(not(feature = "default"), allow(dead_code, unused_imports))]

#[cfg(feature = "kubernetes")]
mod accept;
pub mod aead;
#[cfg(feature = "server")]
pub mod app;
#[cfg(feature = "service")]
pub mod archive;
#[cfg(feature = "service")]
pub mod audit;
#[cfg(feature = "server")]
pub mod auth;
#[cfg(feature = "server")]
pub mod aws_api;
mod backoff;
mod base64;
pub mod clock;
pub mod cobblestone;
#[cfg(feature = "server")]
pub mod config;
#[cfg(test)]
mod constant_time;
pub mod envelope;
pub mod error_chain;
pub mod export;
pub mod files;
#[doc(hidden)]
#[cfg(all(feature = "server", any(test, fuzzing)))]
pub mod fuzzing;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "kubernetes")]
mod http2_frames;
pub mod human_units;
pub mod id;
#[cfg(feature = "service")]
mod in_progress;
#[cfg(feature = "server")]
mod json;
pub mod keychain;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
#[cfg(feature = "kubernetes")]
mod log_throttle;
pub mod loopback;
#[cfg(feature = "service")]
pub mod metrics;
#[cfg(feature = "_pem")]
mod pem;
#[cfg(feature = "_proxy")]
mod proxy;
pub mod random;
pub mod root;
pub mod secret;
#[cfg(feature = "service")]
pub mod service;
#[cfg(feature = "server")]
mod shared_call;
#[cfg(feature = "server")]
mod sigv4;
#[cfg(feature = "service")]
mod single_flight;
#[cfg(feature = "service")]
pub mod status;
#[cfg(feature = "service")]
pub mod store;
pub mod stream;
#[cfg(feature = "server")]
pub mod telemetry;
#[path = "../tests/it/support/ports.rs"]
#[cfg(test)]
#[cfg(any(feature = "etcd", feature = "vault-transit"))]
mod test_ports;
pub mod timestamp;
#[cfg(feature = "server")]
pub mod tls;
#[cfg(feature = "service")]
pub mod trace_context;
#[cfg(feature = "service")]
mod wildcard;

pub use envelope::Envelope;
pub use id::{ChainName, KekId, Suite};
pub use keychain::message::Plaintext;
pub use keychain::{DecryptError, EncryptError, KeyChain, RewrapError};
pub use root::RootKey;
#[cfg(feature = "service")]
pub use service::KeyService;
#[cfg(feature = "service")]
pub use store::Store;
