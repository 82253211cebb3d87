//! What an envelope costs in process, against the AES-GCM operations that it can't do without.
//!
//! `ours`: from a slice to an envelope and back, as the service does it, with all that belongs to
//! it: the buffer, a use of the KEK, fresh randomness, both AADs, the header, the wiping. `bare`: a
//! key set-up, one operation on the payload and one on 16 bytes under a prepared key, in place,
//! without AAD, randomness or allocation. `bare+aad`: the same over the two AADs that the format
//! has, ready-made. `AWS-LC`: the payload alone, in place under a new key, with aws-lc-rs.
//!
//! All of them take turns in short rounds of one run, so that a noisy machine disturbs them alike.
//! Figures are medians over the rounds; a ratio is the median of each round's ratio.

use std::hint::black_box;
use std::time::{Duration, Instant};

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes128Gcm, Tag};
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use kms_proxy::envelope::{self, Version};
use kms_proxy::{ChainName, KeyChain, Plaintext, Suite};

#[allow(dead_code, reason = "others need the rest of it")]
#[path = "load/results.rs"]
mod results;

use results::{Column, Options, Table, row};

const SIZES: [(&str, usize); 5] =
    [("16 B", 16), ("256 B", 256), ("4 KiB", 4 << 10), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20)];
const ROUND: Duration = Duration::from_micros(200);
const ROUNDS: usize = 1_000;
const SUITE: Suite = Suite::Aes128Gcm;
const AAD: &[u8] = b"row 7";

type Error = Box<dyn std::error::Error>;
type Subject<'a> = &'a mut dyn FnMut() -> Result<(), Error>;

const COLUMNS: [Column; 9] = [
    ("plaintext", "plaintext", 0),
    ("call", "call", 0),
    ("ns", "ours ns", 0),
    ("bare_ns", "bare ns", 0),
    ("ratio", "ratio", 2),
    ("aad_ns", "bare with AAD ns", 0),
    ("aad_ratio", "ratio", 2),
    ("aws_lc_ns", "AWS-LC ns", 0),
    ("aws_lc_speed", "speed to AWS-LC's", 2),
];

fn main() -> Result<(), Error> {
    let options = Options::read(&[])?;
    let rounds = if options.is_quick { ROUNDS / 50 } else { ROUNDS };
    let name = ChainName::new("default")?;
    let payload_aad = envelope::data_aad(SUITE, &name, AAD).ok_or("the AAD is too long")?;
    let mut chain = KeyChain::generate(name.clone(), SUITE)?;
    let kek_id = chain.primary_id().ok_or("there is no primary")?;
    let dek_aad = envelope::dek_aad(Version::Stored, SUITE, &kek_id, &name);

    let about = "Sealing and opening an envelope in process, AES-128-GCM, in ns a call, next to its \
                 bare AES-GCM operations with their key set-up, without and with the AADs of the \
                 format, and next to AWS-LC's AES-GCM of the payload alone, in place.";
    let mut table = Table::new("micro", about.to_owned(), &COLUMNS);
    for (label, size) in SIZES {
        // Each size has uses of its own: 2^22 are more than its rounds take.
        chain.rotate()?;
        let plaintext = vec![7; size];
        let mut bare = Bare::new(size, [b"", b""]);
        let mut with_aad = Bare::new(size, [&payload_aad, &dek_aad]);
        let mut aws_lc = AwsLc { payload: plaintext.clone(), sealed: None };
        let figures = compare(
            rounds,
            [
                &mut || seal(&chain, &plaintext),
                &mut || bare.seal(),
                &mut || with_aad.seal(),
                &mut || aws_lc.seal(),
            ],
        )?;
        table.push(line(label, "seal", &figures));

        let sealed = chain.encrypt(&plaintext, AAD)?;
        let (mut bare, mut with_aad) = (bare.sealed()?, with_aad.sealed()?);
        let tag = aws_lc.seal_payload()?;
        aws_lc.sealed = Some((aws_lc.payload.clone(), tag));
        let figures = compare(
            rounds,
            [
                &mut || open(&chain, &sealed),
                &mut || bare.open(),
                &mut || with_aad.open(),
                &mut || aws_lc.open(),
            ],
        )?;
        table.push(line(label, "open", &figures));
    }
    Ok(options.show(&table)?)
}

/// A row of the table: nanoseconds of ours and of the others, each with the ratio to it. The last
/// ratio is one of speeds.
fn line(size: &str, call: &str, figures: &[[f64; SUBJECTS]]) -> Vec<serde_json::Value> {
    let of = |figure: fn(&[f64; SUBJECTS]) -> f64| median(figures.iter().map(figure).collect());
    row![
        size,
        call,
        of(|[ours, ..]| *ours),
        of(|[_, bare, ..]| *bare),
        of(|[ours, bare, ..]| ours / bare),
        of(|[_, _, with_aad, _]| *with_aad),
        of(|[ours, _, with_aad, _]| ours / with_aad),
        of(|[.., aws_lc]| *aws_lc),
        of(|[ours, .., aws_lc]| aws_lc / ours),
    ]
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

/// AWS-LC's AES-GCM of a payload, with its key set-up.
struct AwsLc {
    payload: Vec<u8>,
    /// What was sealed, to be opened again and again.
    sealed: Option<(Vec<u8>, [u8; 16])>,
}

impl AwsLc {
    fn key() -> Result<(LessSafeKey, Nonce), Error> {
        let key = UnboundKey::new(&AES_128_GCM, black_box(&[3; 16]))?;
        Ok((LessSafeKey::new(key), Nonce::assume_unique_for_key([0; 12])))
    }

    fn seal(&mut self) -> Result<(), Error> {
        black_box(self.seal_payload()?);
        Ok(())
    }

    fn seal_payload(&mut self) -> Result<[u8; 16], Error> {
        let (key, nonce) = Self::key()?;
        let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut self.payload)?;
        Ok(tag.as_ref().try_into()?)
    }

    /// With the copy that [`Bare::open`] has too.
    fn open(&mut self) -> Result<(), Error> {
        let (sealed, tag) = self.sealed.as_ref().ok_or("nothing was sealed")?;
        self.payload.copy_from_slice(sealed);
        let (key, nonce) = Self::key()?;
        key.open_in_place_separate_tag(nonce, Aad::empty(), tag, &mut self.payload)?;
        black_box(&self.payload);
        Ok(())
    }
}

const SUBJECTS: usize = 4;

/// Nanoseconds of ours and of the others, measured side by side: an array for each round.
fn compare(
    rounds: usize,
    mut subjects: [Subject<'_>; SUBJECTS],
) -> Result<Vec<[f64; SUBJECTS]>, Error> {
    let mut calls = 1;
    for subject in &mut subjects {
        calls = calls.max(calls_in_a_round(subject)?);
    }
    let (mut figures, mut order) = (Vec::new(), [0, 1, 2, 3]);
    for _ in 0..rounds {
        // A later one finds the caches and the clock speed that the others left.
        order.rotate_left(1);
        let mut round = [0.0; SUBJECTS];
        for subject in order {
            if let (Some(figure), Some(call)) = (round.get_mut(subject), subjects.get_mut(subject))
            {
                *figure = nanos(calls, call)?;
            }
        }
        figures.push(round);
    }
    Ok(figures)
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
