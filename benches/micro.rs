//! What an envelope costs in process, against the AES-GCM operations that it can't do without.
//!
//! `ours`: from a slice to an envelope and back, as the service does it, with all that belongs to
//! it: the buffer, a use of the KEK, fresh randomness, both AADs, the header, the wiping. `bare`: a
//! key set-up, one operation on the payload and one on 16 bytes under a prepared key, in place,
//! without AAD, randomness or allocation. `bare+aad`: the same over the two AADs that the format
//! has, ready-made.
//!
//! All of them take turns in short rounds of one run, so that a noisy machine disturbs them alike.
//! Figures are medians over the rounds; a ratio is the median of each round's ratio.

use std::hint::black_box;
use std::time::{Duration, Instant};

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes128Gcm, Tag};
use kms_proxy::envelope::{self, Version};
use kms_proxy::{ChainName, KeyChain, Plaintext, Suite};

const SIZES: [(&str, usize); 5] =
    [("16 B", 16), ("256 B", 256), ("4 KiB", 4 << 10), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20)];
const ROUND: Duration = Duration::from_micros(200);
const ROUNDS: usize = 1_000;
const SUITE: Suite = Suite::Aes128Gcm;
const AAD: &[u8] = b"row 7";

type Error = Box<dyn std::error::Error>;
type Subject<'a> = &'a mut dyn FnMut() -> Result<(), Error>;

fn main() -> Result<(), Error> {
    let name = ChainName::new("default")?;
    let payload_aad = envelope::data_aad(SUITE, &name, AAD).ok_or("the AAD is too long")?;
    let mut chain = KeyChain::generate(name.clone(), SUITE)?;
    let kek_id = chain.primary_id().ok_or("there is no primary")?;
    let dek_aad = envelope::dek_aad(Version::Stored, SUITE, &kek_id, &name);

    println!("AES-128-GCM; ns a call");
    println!(
        "{:8}{:6}{:>10}{:>10}{:>7}{:>10}{:>7}",
        "", "", "ours", "bare", "ratio", "bare+aad", "ratio"
    );
    for (label, size) in SIZES {
        // Each size has uses of its own: 2^22 are more than its rounds take.
        chain.rotate()?;
        let plaintext = vec![7; size];
        let mut bare = Bare::new(size, [b"", b""]);
        let mut with_aad = Bare::new(size, [&payload_aad, &dek_aad]);
        row(
            (label, "seal"),
            [&mut || seal(&chain, &plaintext), &mut || bare.seal(), &mut || with_aad.seal()],
        )?;

        let sealed = chain.encrypt(&plaintext, AAD)?;
        let (mut bare, mut with_aad) = (bare.sealed()?, with_aad.sealed()?);
        row(
            (label, "open"),
            [&mut || open(&chain, &sealed), &mut || bare.open(), &mut || with_aad.open()],
        )?;
    }
    Ok(())
}

fn seal(chain: &KeyChain, plaintext: &[u8]) -> Result<(), Error> {
    black_box(chain.seal(Plaintext::from(black_box(plaintext)), AAD)?.as_slice());
    Ok(())
}

fn open(chain: &KeyChain, envelope: &[u8]) -> Result<(), Error> {
    black_box(chain.decrypt(black_box(envelope), AAD)?.as_slice());
    Ok(())
}

/// The bare operations.
#[derive(Clone)]
struct Bare<'a> {
    kek: Aes128Gcm,
    aads: [&'a [u8]; 2],
    /// What is worked on in place: a payload and a DEK.
    payload: Vec<u8>,
    dek: [u8; 16],
    /// What was sealed, to be opened again and again.
    sealed: (Vec<u8>, [u8; 16], [Tag; 2]),
}

impl<'a> Bare<'a> {
    const KEY: [u8; 16] = [3; 16];

    fn new(size: usize, aads: [&'a [u8]; 2]) -> Self {
        let kek = Aes128Gcm::new(&[5; 16].into());
        let sealed = (Vec::new(), Self::KEY, [Tag::default(); 2]);
        Self { kek, aads, payload: vec![7; size], dek: Self::KEY, sealed }
    }

    fn seal(&mut self) -> Result<(), Error> {
        black_box(self.seal_payload_and_dek()?);
        Ok(())
    }

    fn seal_payload_and_dek(&mut self) -> Result<[Tag; 2], Error> {
        let (nonce, [payload_aad, dek_aad]) = ([0; 12].into(), self.aads);
        let cipher = Aes128Gcm::new(black_box(&Self::KEY).into());
        let payload = self.payload.as_mut_slice().into();
        let dek = self.dek.as_mut_slice().into();
        Ok([
            cipher.encrypt_inout_detached(&nonce, payload_aad, payload)?,
            self.kek.encrypt_inout_detached(&nonce, dek_aad, dek)?,
        ])
    }

    /// The same with something to open.
    fn sealed(&self) -> Result<Self, Error> {
        let mut sealed = Self { dek: Self::KEY, ..self.clone() };
        let tags = sealed.seal_payload_and_dek()?;
        sealed.sealed = (sealed.payload.clone(), sealed.dek, tags);
        Ok(sealed)
    }

    /// To open in place the ciphertext must be put back each time: one copy, as ours has it too.
    fn open(&mut self) -> Result<(), Error> {
        let (nonce, [payload_aad, dek_aad]) = ([0; 12].into(), self.aads);
        let (payload, dek, [payload_tag, dek_tag]) = &self.sealed;
        self.payload.copy_from_slice(payload);
        self.dek = *dek;
        let dek = self.dek.as_mut_slice().into();
        self.kek.decrypt_inout_detached(&nonce, dek_aad, dek, dek_tag)?;
        let payload = self.payload.as_mut_slice().into();
        Aes128Gcm::new(&self.dek.into()).decrypt_inout_detached(
            &nonce,
            payload_aad,
            payload,
            payload_tag,
        )?;
        black_box(&self.payload);
        Ok(())
    }
}

/// Measures ours and the others side by side, and prints a row of the table.
fn row((label, operation): (&str, &str), mut subjects: [Subject<'_>; 3]) -> Result<(), Error> {
    let mut calls = 1;
    for subject in &mut subjects {
        calls = calls.max(calls_in_a_round(subject)?);
    }
    let (mut rounds, mut order) = (Vec::new(), [0, 1, 2]);
    for _ in 0..ROUNDS {
        // Whoever comes later finds the caches and the clock speed that the others left.
        order.rotate_left(1);
        let mut round = [0.0; 3];
        for subject in order {
            if let (Some(figure), Some(call)) = (round.get_mut(subject), subjects.get_mut(subject))
            {
                *figure = nanos(calls, call)?;
            }
        }
        rounds.push(round);
    }
    let of = |figure: fn(&[f64; 3]) -> f64| median(rounds.iter().map(figure).collect());
    println!(
        "{label:8}{operation:6}{:>10.0}{:>10.0}{:>7.2}{:>10.0}{:>7.2}",
        of(|[ours, ..]| *ours),
        of(|[_, bare, _]| *bare),
        of(|[ours, bare, _]| ours / bare),
        of(|[.., with_aad]| *with_aad),
        of(|[ours, _, with_aad]| ours / with_aad),
    );
    Ok(())
}

/// A power of two that takes about as long as a round shall.
fn calls_in_a_round(call: Subject<'_>) -> Result<u32, Error> {
    let mut calls = 1;
    while nanos(calls, call)? * f64::from(calls) < ROUND.as_secs_f64() * 1e9 {
        calls *= 2;
    }
    Ok(calls)
}

/// Nanoseconds a call.
fn nanos(calls: u32, call: Subject<'_>) -> Result<f64, Error> {
    let start = Instant::now();
    for _ in 0..calls {
        call()?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(calls))
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
