//! AES-GCM (NIST SP 800-38D) under a prepared key: the only caller of the `aes-gcm` crate, and of
//! the AEADs of AWS-LC.
//!
//! It seals and opens in place and knows nothing about KEKs, DEKs or envelopes. A key that is used
//! often is a [`Cipher`] with the caller's random nonces; a key that is used once needs no nonce;
//! a [`BulkCipher`] is for many long messages. Which implementation seals a message does not
//! change a bit of the result.

use std::cell::Cell;

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes128Gcm, Aes256Gcm};

use crate::secret::{Exposed, KeyBytes};

#[cfg_attr(not(feature = "aws-lc"), path = "aead/portable.rs")]
mod long;

/// The size of a nonce in bytes.
pub const NONCE_LEN: usize = 12;
/// The size of an authentication tag in bytes.
pub const TAG_LEN: usize = 16;

/// Sealing or opening failed: a wrong key, nonce, AAD or tag, or changed bytes. Which one is not
/// reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed")]
pub struct Failed;

/// A key with its schedule: about 700 bytes on the heap, wiped on drop.
pub struct Cipher(Box<Inner>);

enum Inner {
    Aes128(Aes128Gcm),
    Aes256(Aes256Gcm),
}

impl Cipher {
    /// Prepares `key`.
    #[must_use]
    #[inline]
    pub fn new(key: &KeyBytes) -> Self {
        swept(|| {
            Self(Box::new(match key.exposed() {
                Exposed::Aes128(key) => Inner::Aes128(Aes128Gcm::new(key.into())),
                Exposed::Aes256(key) => Inner::Aes256(Aes256Gcm::new(key.into())),
            }))
        })
    }

    /// Seals `buffer` in place and returns the tag.
    ///
    /// # Errors
    /// [`Failed`] when `buffer` has more than 2^36 - 32 bytes.
    #[inline]
    pub fn seal(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        buffer: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Failed> {
        let tag = match &*self.0 {
            Inner::Aes128(key) => key.encrypt_inout_detached(nonce.into(), aad, buffer.into()),
            Inner::Aes256(key) => key.encrypt_inout_detached(nonce.into(), aad, buffer.into()),
        };
        tag.map(Into::into).map_err(|_| Failed)
    }

    /// Opens `buffer` in place. On failure, `buffer` is unchanged.
    ///
    /// # Errors
    /// [`Failed`] if anything differs from what was sealed.
    #[inline]
    pub fn open(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), Failed> {
        let opened = match &*self.0 {
            Inner::Aes128(key) => {
                key.decrypt_inout_detached(nonce.into(), aad, buffer.into(), tag.into())
            }
            Inner::Aes256(key) => {
                key.decrypt_inout_detached(nonce.into(), aad, buffer.into(), tag.into())
            }
        };
        opened.map_err(|_| Failed)
    }
}

/// Seals `buffer` in place under a key that seals nothing else, with a nonce of zeros, and
/// returns the tag.
///
/// # Errors
/// [`Failed`] when `buffer` has more than 2^36 - 32 bytes.
#[inline]
pub fn seal_once(key: &KeyBytes, aad: &[u8], buffer: &mut [u8]) -> Result<[u8; TAG_LEN], Failed> {
    swept(|| seal_once_unswept(key, aad, buffer))
}

/// The same, for work that is [`swept`] as a whole.
#[inline]
pub(crate) fn seal_once_unswept(
    key: &KeyBytes,
    aad: &[u8],
    buffer: &mut [u8],
) -> Result<[u8; TAG_LEN], Failed> {
    if long::takes(buffer.len()) {
        return long::Key::new(key)?.seal(&ZERO, aad, buffer);
    }
    let tag = match key.exposed() {
        Exposed::Aes128(key) => {
            Aes128Gcm::new(key.into()).encrypt_inout_detached(&ZERO.into(), aad, buffer.into())
        }
        Exposed::Aes256(key) => {
            Aes256Gcm::new(key.into()).encrypt_inout_detached(&ZERO.into(), aad, buffer.into())
        }
    };
    tag.map(Into::into).map_err(|_| Failed)
}

/// Opens what [`seal_once`] sealed. On failure, `buffer` contains no plaintext.
///
/// # Errors
/// [`Failed`] if anything differs from what was sealed.
#[inline]
pub fn open_once(
    key: &KeyBytes,
    aad: &[u8],
    buffer: &mut [u8],
    tag: &[u8; TAG_LEN],
) -> Result<(), Failed> {
    if long::takes(buffer.len()) {
        return swept(|| long::Key::new(key)?.open(&ZERO, aad, buffer, tag));
    }
    let opened = swept(|| match key.exposed() {
        Exposed::Aes128(key) => Aes128Gcm::new(key.into()).decrypt_inout_detached(
            &ZERO.into(),
            aad,
            buffer.into(),
            tag.into(),
        ),
        Exposed::Aes256(key) => Aes256Gcm::new(key.into()).decrypt_inout_detached(
            &ZERO.into(),
            aad,
            buffer.into(),
            tag.into(),
        ),
    });
    opened.map_err(|_| Failed)
}

/// A key with its schedule, for many messages of some KiB each.
pub struct BulkCipher(long::Key);

impl BulkCipher {
    /// Prepares `key`.
    ///
    /// # Errors
    /// [`Failed`] if there is no memory for it.
    pub fn new(key: &KeyBytes) -> Result<Self, Failed> {
        swept(|| long::Key::new(key)).map(Self)
    }

    /// Seals `buffer` in place and returns the tag.
    ///
    /// # Errors
    /// [`Failed`] when `buffer` has more than 2^36 - 32 bytes.
    pub fn seal(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        buffer: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Failed> {
        swept(|| self.0.seal(nonce, aad, buffer))
    }

    /// Opens `buffer` in place. On failure, `buffer` contains no plaintext.
    ///
    /// # Errors
    /// [`Failed`] if anything differs from what was sealed.
    pub fn open(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), Failed> {
        swept(|| self.0.open(nonce, aad, buffer, tag))
    }
}

/// How much of the stack is overwritten. A message passes over the stack in pieces of up to 1 KiB,
/// 64 blocks. With AVX-512, which uses the largest pieces, AES-256 reaches a depth of 8.0 KB and
/// AES-128 of 7.0 KB. The key and its schedule are there too, whatever the size of the message.
const SWEPT: usize = 12 * 1024;

/// Runs `work`, then overwrites what it left on the stack: keys, their schedules and pieces of
/// messages. A key in its result must be on the heap. Within [`sweep_once`] it only runs `work`.
#[inline]
pub(crate) fn swept<T>(work: impl FnOnce() -> T) -> T {
    if IS_SWEPT_LATER.get() {
        return work();
    }
    let done = apart(work);
    sweep::<SWEPT>();
    done
}

/// Overwrites the stack once for all [`swept`] work of each poll of `work`: for many short
/// messages, whose sweeps would take longer than their encryption.
pub(crate) async fn sweep_once<F: Future>(work: F) -> F::Output {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|context| {
        let polled = apart(|| {
            let _later = SweptLater::begin();
            work.as_mut().poll(context)
        });
        sweep::<{ SWEPT + POLLED }>();
        polled
    })
    .await
}

/// What the frames between a poll and the AEAD take of the stack, generously.
const POLLED: usize = 20 * 1024;

thread_local! {
    static IS_SWEPT_LATER: Cell<bool> = const { Cell::new(false) };
}

/// While it exists, [`swept`] leaves the sweep to [`sweep_once`].
struct SweptLater {
    before: bool,
}

impl SweptLater {
    fn begin() -> Self {
        Self { before: IS_SWEPT_LATER.replace(true) }
    }
}

impl Drop for SweptLater {
    fn drop(&mut self) {
        IS_SWEPT_LATER.set(self.before);
    }
}

/// Runs `work` in a separate frame, so that a [`sweep`] after it overwrites the same stack.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn sweep<const LEN: usize>() {
    std::hint::black_box(&mut [0_u8; LEN]);
}

const ZERO: [u8; NONCE_LEN] = [0; NONCE_LEN];

#[cfg(test)]
mod public_vectors;

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::constant_time;
    use crate::id::Suite;

    /// Of the `aes-gcm` crate, and of AWS-LC from 1 KiB on.
    #[test]
    fn tags_take_the_same_time_wherever_the_difference_is() {
        type Given = (Vec<u8>, [u8; TAG_LEN]);
        for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
            let key = KeyBytes::random(suite).unwrap();
            for len in [16, 2048] {
                let mut sealed = vec![7; len];
                let tag = seal_once(&key, b"", &mut sealed).unwrap();
                let set = |given: &mut Given, input: &[u8]| {
                    given.0.copy_from_slice(&sealed);
                    given.1.copy_from_slice(input);
                };
                let accepts =
                    |given: &mut Given| open_once(&key, b"", &mut given.0, &given.1).is_ok();
                let name = format!("tag of {len} bytes, {suite}");
                constant_time::check(&name, (sealed.clone(), tag), &tag, set, accepts);
            }
        }
    }

    fn hex(text: &str) -> Vec<u8> {
        base16ct::lower::decode_vec(text).unwrap()
    }

    /// McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B, cases 4 and 16.
    #[test]
    fn published_vectors() {
        let plaintext = hex("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72\
             1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39");
        let aad = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
        let nonce: [u8; 12] = hex("cafebabefacedbaddecaf888").try_into().unwrap();
        let cases = [
            (
                "feffe9928665731c6d6a8f9467308308",
                "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e\
                 21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091",
                "5bc94fbc3221a5db94fae95ae7121a47",
            ),
            (
                "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
                "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa\
                 8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
                "76fc6ece0f4e1768cddf8853bb2d551b",
            ),
        ];
        for (key, ciphertext, tag) in cases {
            let cipher = Cipher::new(&KeyBytes::from_slice(&hex(key)).unwrap());
            let mut buffer = plaintext.clone();
            assert_eq!(cipher.seal(&nonce, &aad, &mut buffer).unwrap().to_vec(), hex(tag));
            assert_eq!(buffer, hex(ciphertext));
            let mut tag: [u8; 16] = hex(tag).try_into().unwrap();
            cipher.open(&nonce, &aad, &mut buffer, &tag).unwrap();
            assert_eq!(buffer, plaintext);
            tag[0] ^= 1;
            let before = buffer.clone();
            assert_eq!(cipher.open(&nonce, &aad, &mut buffer, &tag), Err(Failed));
            assert_eq!(buffer, before, "a failed open leaves the buffer alone");
        }
    }

    #[tokio::test]
    async fn work_that_is_swept_later_leaves_the_sweep_to_each_poll() {
        let is_later = || swept(|| IS_SWEPT_LATER.get());
        assert!(!is_later());
        let other = sweep_once(async {
            assert!(is_later());
            // Other tasks run meanwhile, and sweep for themselves.
            tokio::task::yield_now().await;
            sweep_once(async { assert!(is_later()) }).await;
            is_later()
        });
        let (later, ()) = tokio::join!(biased; other, async { assert!(!is_later()) });
        assert!(later && !is_later());
        let panicked = std::panic::catch_unwind(|| {
            let _later = SweptLater::begin();
            panic!("a call that panics");
        });
        assert!(panicked.is_err() && !is_later());
    }

    proptest! {
        /// Whichever implementation seals a message, the other one opens it: at each length around
        /// the one from which the implementation changes.
        #[test]
        fn the_implementations_agree(
            key in prop_oneof![vec(any::<u8>(), 16), vec(any::<u8>(), 32)],
            aad in vec(any::<u8>(), 0..100),
            message in vec(any::<u8>(), 0..3000),
            bit in 0_usize..8,
        ) {
            let key = KeyBytes::from_slice(&key).unwrap();
            let (small, bulk) = (Cipher::new(&key), BulkCipher::new(&key).unwrap());
            let (mut one, mut two, mut three) = (message.clone(), message.clone(), message.clone());
            let tag = small.seal(&ZERO, &aad, &mut one).unwrap();
            prop_assert_eq!(bulk.seal(&ZERO, &aad, &mut two).unwrap(), tag);
            prop_assert_eq!(seal_once(&key, &aad, &mut three).unwrap(), tag);
            prop_assert!(one == two && two == three);

            open_once(&key, &aad, &mut one, &tag).unwrap();
            bulk.open(&ZERO, &aad, &mut two, &tag).unwrap();
            small.open(&ZERO, &aad, &mut three, &tag).unwrap();
            prop_assert!(one == message && two == message && three == message);

            let sealed = seal_once(&key, &aad, &mut one).map(|tag| (one, tag)).unwrap();
            let mut wrong = sealed.1;
            wrong[0] ^= 1 << bit;
            for open in [open_once, |key: &KeyBytes, aad: &[u8], buffer: &mut [u8], tag: &_| {
                BulkCipher::new(key).unwrap().open(&ZERO, aad, buffer, tag)
            }] {
                let mut buffer = sealed.0.clone();
                prop_assert_eq!(open(&key, &aad, &mut buffer, &wrong), Err(Failed));
                prop_assert!(message.len() < 16 || buffer != message, "no plaintext remains");
            }
        }
    }
}
