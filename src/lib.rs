//! Encryption under a key chain: one call of an expensive root key pays for millions of messages.
//!
//! Every plaintext is encrypted under a fresh key, that key is wrapped by the chain's primary KEK,
//! and only the KEK is wrapped by a root key: one in AWS KMS, in an HSM, in Vault or OpenBao, a
//! passphrase, or for development a key file; and [`RootKey`] takes one of your own. The `kms-proxy` binary offers this over HTTP; this crate is the same thing
//! without the HTTP.
//!
//! | word | meaning |
//! | --- | --- |
//! | root key | an external key that wraps KEKs; it never sees user data |
//! | key chain | a named set of KEKs, one of them primary, with a limit of uses for each |
//! | KEK | wraps DEKs. The primary encrypts; the older ones only decrypt |
//! | DEK | a fresh random key, used for exactly one plaintext |
//! | envelope | what is stored: a header (which KEK, the wrapped DEK) and a payload (the ciphertext) |
//! | AAD | bytes that are authenticated and not stored: the same ones must be given to decrypt |
//! | use | one DEK wrapped under a KEK: what the limits count |
//!
//! To *rotate* is to make a new primary KEK, to *rewrap* is to move an envelope's DEK to it.
//!
//! # A chain of one's own
//!
//! A [`KeyChain`] is synchronous and does no I/O. An envelope opens with the AAD that it was made
//! with, in the chain that it was made in, and in no other way:
//!
//! ```
//! use kms_proxy::{ChainName, DecryptError, KeyChain, Suite};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let chain = KeyChain::generate(ChainName::new("orders")?, Suite::Aes128Gcm)?;
//! let envelope = chain.encrypt(b"hello", b"row 7")?;
//!
//! assert_eq!(chain.decrypt(&envelope, b"row 7")?.as_slice(), b"hello");
//! assert_eq!(chain.decrypt(&envelope, b"row 8").unwrap_err(), DecryptError::Invalid);
//! # Ok(())
//! # }
//! ```
//!
//! # Rotate and rewrap
//!
//! After a rotation old envelopes still decrypt. To move one to the new primary takes its header
//! alone, 62 bytes or, in a chain of AES-256, 78, however long the payload is:
//!
//! ```
//! use kms_proxy::envelope::{Envelope, header_len};
//! # use kms_proxy::{ChainName, KeyChain, Suite};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let mut chain = KeyChain::generate(ChainName::new("orders")?, Suite::Aes128Gcm)?;
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
//! # Write a chain, and start again from it
//!
//! A chain is written to any [`io::Write`](std::io::Write), each of its KEKs wrapped under a
//! [`RootKey`], and read back from any [`io::Read`](std::io::Read). [`export`] has the format, and
//! how the copy comes by uses of its own:
//!
//! ```
//! use kms_proxy::{export, root};
//! # use kms_proxy::{ChainName, KeyChain, Suite};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let chain = KeyChain::generate(ChainName::new("orders")?, Suite::Aes128Gcm)?;
//! # let envelope = chain.encrypt(b"hello", b"row 7")?;
//! let root = root::local::Root::generate()?; // a key in memory, for examples and tests
//! let mut file = Vec::new();
//! export::write_with_half_the_uses(&chain, &root, &mut file).await?;
//!
//! let chain = export::read(&root, &mut file.as_slice()).await?;
//! assert_eq!(chain.decrypt(&envelope, b"row 7")?.as_slice(), b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! # Start from a root
//!
//! A [`KeyService`] keeps its chains in a [`Store`]: it counts uses durably and over all replicas,
//! makes the next KEK by itself before the limit or the age is reached, and has it wrapped by every
//! root. This is what runs behind the HTTP:
//!
//! ```
//! use std::sync::Arc;
//!
//! use kms_proxy::clock::SystemClock;
//! use kms_proxy::metrics::{Metrics, Registry};
//! use kms_proxy::{KeyService, root, service, store};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let root = root::Named { name: "main".into(), root: Arc::new(root::local::Root::generate()?) };
//! let store = Arc::new(store::memory::Store::new());
//! let metrics = Metrics::new(&Registry::new())?;
//! let service = KeyService::start(
//!     service::Config::default(),
//!     store,
//!     vec![root],
//!     Arc::new(SystemClock::new()),
//!     metrics,
//! )
//! .await?;
//!
//! let made = service.encrypt(None, b"hello".into(), b"row 7").await?; // None: the chain `default`
//! service.rotate(None).await?;
//! let opened = service.decrypt(None, made.envelope.into(), b"row 7").await?;
//! assert_eq!(opened.plaintext.as_slice(), b"hello");
//! service.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Map
//!
//! | modules | what they own |
//! | --- | --- |
//! | [`id`], [`secret`], [`random`], [`aead`], [`clock`], [`units`] | leaves: names, key bytes, randomness, AES-GCM, time, quantities |
//! | [`metrics`], [`telemetry`] | what is counted, and how logs are written |
//! | [`envelope`] | the wire format |
//! | [`keychain`] | chains in memory: seal, open, count uses, plan rotations |
//! | [`root`] | the contract of a root key, and one file for each provider |
//! | [`store`] | the contract of a store, the records in it, and one file for each kind |
//! | [`export`] | a chain written under a root and read back |
//! | [`service`] | chains, roots and a store joined: [`KeyService`] |
//! | [`auth`] | who calls, and what each caller may do |
//! | [`tls`] | certificates, handshakes, and who a client is by its certificate |
//! | [`http`], [`kubernetes`], [`config`], [`app`] | the server around it |
//!
//! A module imports only what stands above or beside it in this table; a test sees to it.
//!
//! # Security
//!
//! The types of this crate that hold a key or a plaintext wipe it when they are dropped, and none
//! shows it in `Debug`, errors or logs. The buffers of HTTP and of other libraries are the
//! allocator's: the `kms-proxy` program has one that wipes what is freed; `SECURITY.md` has the whole
//! list. AES-GCM nonces of a KEK are random, which is safe for 2^32 uses (NIST SP 800-38D); the limits
//! here stay far below, see [`keychain::UNSHARED_USES`] and [`store::record::Limits`]. A failed
//! decryption says nothing about why. There is no `unsafe` code in this crate.

// Modules share helpers that only some of the features need.
#![cfg_attr(not(feature = "default"), allow(dead_code, unused_imports))]

pub mod aead;
#[cfg(feature = "server")]
pub mod app;
#[cfg(feature = "server")]
pub mod auth;
pub mod clock;
#[cfg(feature = "server")]
pub mod config;
pub mod envelope;
pub mod export;
mod files;
#[cfg(feature = "server")]
pub mod http;
pub mod id;
pub mod keychain;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
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
#[cfg(feature = "service")]
pub mod store;
#[cfg(feature = "server")]
pub mod telemetry;
#[cfg(feature = "server")]
pub mod tls;
pub mod units;

pub use envelope::Envelope;
pub use id::{ChainName, KekId, Suite};
pub use keychain::message::Plaintext;
pub use keychain::{DecryptError, EncryptError, KeyChain, RewrapError};
pub use root::RootKey;
#[cfg(feature = "service")]
pub use service::KeyService;
#[cfg(feature = "service")]
pub use store::Store;
