//! Writers, readers and threads give what the parts without I/O give, and nothing else.

use std::io::{Cursor, ErrorKind, Read, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;

use super::*;

const SUITE: Suite = Suite::Aes128Gcm;
const CONTEXT: &[u8] = b"ctx";
/// The plaintext of a batch of a thread.
const BATCH: usize = 64 * CHUNK_LEN;

/// Gives the bytes in pieces of up to `most`, and an interruption before each.
struct Pieces<'a> {
    bytes: &'a [u8],
    most: usize,
    interrupt: bool,
}

impl<'a> Pieces<'a> {
    fn new(bytes: &'a [u8], most: usize) -> Self {
        Self { bytes, most, interrupt: false }
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupt = !self.interrupt;
        if self.interrupt {
            return Err(ErrorKind::Interrupted.into());
        }
        let len = buffer.len().min(self.most);
        self.bytes.read(&mut buffer[..len])
    }
}

/// A reader or writer that fails after some bytes.
struct Failing(usize);

impl Write for Failing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(self.0);
        self.0 -= len;
        if len == 0 { Err(ErrorKind::BrokenPipe.into()) } else { Ok(len) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Failing {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = bytes.len().min(self.0);
        self.0 -= len;
        if len == 0 { Err(ErrorKind::ConnectionReset.into()) } else { Ok(len) }
    }
}

fn message(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

fn new_key() -> (MessageKey, Prefix) {
    MessageKey::with_salt(&key(SUITE), &[9; SALT_LEN], CONTEXT).unwrap()
}

/// The chunks of a message, without the prefix.
fn chunks(message: &[u8]) -> Vec<u8> {
    let (key, prefix) = new_key();
    seal_in_pieces(key, &prefix, message, 9_999)[PREFIX_LEN..].to_vec()
}

fn read_all(mut reader: impl Read) -> (Vec<u8>, io::Result<usize>) {
    let mut opened = Vec::new();
    let result = reader.read_to_end(&mut opened);
    (opened, result)
}

fn threads(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).unwrap()
}

fn kind<T>(result: io::Result<T>) -> ErrorKind {
    result.map(drop).expect_err("it fails").kind()
}

/// Around the borders of chunks and of batches.
fn lens() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0..100_usize,
        4 => CHUNK_LEN - 20..CHUNK_LEN + 20,
        4 => 0..3 * CHUNK_LEN,
        1 => BATCH - 3..BATCH + 3,
        1 => 2 * BATCH - 3..2 * BATCH + CHUNK_LEN + 3,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_way_seals_and_opens_the_same(
        len in lens(),
        (one, two) in (1_usize..40_000, 100_usize..40_000),
        number in 1_usize..5,
    ) {
        let (message, number) = (message(len), threads(number));
        let expected = chunks(&message);
        let mut writer = Writer::new(Vec::new(), new_key().0);
        for piece in message.chunks(one) {
            writer.write_all(piece).unwrap();
            writer.flush().unwrap();
        }
        prop_assert!(writer.finish().unwrap() == expected);
        let mut sealed = Vec::new();
        let total = parallel::seal(&new_key().0, Pieces::new(&message, two), &mut sealed, number);
        prop_assert_eq!(total.unwrap(), len as u64);
        prop_assert!(sealed == expected);

        let (opened, result) = read_all(Reader::new(Pieces::new(&sealed, two), new_key().0));
        prop_assert_eq!(result.unwrap(), len);
        prop_assert!(opened == message);
        let mut opened = Vec::new();
        let total = parallel::open(&new_key().0, Pieces::new(&sealed, two), &mut opened, number);
        prop_assert_eq!(total.unwrap(), len as u64);
        prop_assert!(opened == message);
    }

    #[test]
    fn any_range_is_read(
        len in lens(),
        ranges in vec((any::<prop::sample::Index>(), 0_usize..40_000), 1..6),
        before in 0_usize..100,
    ) {
        let message = message(len);
        let file = [vec![1; before], chunks(&message)].concat();
        let start = before as u64;
        let mut reader = RandomReader::new(Cursor::new(file), new_key().0, start).unwrap();
        prop_assert_eq!((reader.len(), reader.is_empty()), (len as u64, len == 0));
        for (at, size) in ranges {
            let at = at.index(len + 1);
            prop_assert_eq!(reader.seek(SeekFrom::Start(at as u64)).unwrap(), at as u64);
            let mut part = Vec::new();
            (&mut reader).take(size as u64).read_to_end(&mut part).unwrap();
            prop_assert!(part == message[at..(at + size).min(len)]);
        }
    }

    /// Cut anywhere, or with one bit changed: no reader gives a byte that is not in the message,
    /// and none reports a complete message.
    #[test]
    fn what_is_cut_or_changed_is_never_complete(
        len in lens(),
        at: prop::sample::Index,
        bit in 0_usize..8,
        cut: bool,
        number in 1_usize..4,
    ) {
        let message = message(len);
        let mut sealed = chunks(&message);
        let at = at.index(sealed.len());
        if cut { sealed.truncate(at) } else { sealed[at] ^= 1 << bit }

        let mut reader = Reader::new(&*sealed, new_key().0);
        let (opened, result) = read_all(&mut reader);
        prop_assert_eq!(kind(result), ErrorKind::InvalidData);
        prop_assert!(message.starts_with(&opened) && opened.len() % CHUNK_LEN == 0);
        prop_assert_eq!(kind(reader.read(&mut [0])), ErrorKind::InvalidData, "it keeps failing");

        let mut opened = Vec::new();
        let result = parallel::open(&new_key().0, &*sealed, &mut opened, threads(number));
        prop_assert_eq!(kind(result), ErrorKind::InvalidData);
        prop_assert!(message.starts_with(&opened));

        let reader = RandomReader::new(Cursor::new(sealed), new_key().0, 0);
        if cut {
            prop_assert_eq!(kind(reader), ErrorKind::InvalidData);
        } else if let Ok(mut reader) = reader {
            // Of the chunk that was changed nothing is given, and all of the others.
            let bad = at / SEALED_CHUNK_LEN * CHUNK_LEN;
            for start in (0..len).step_by(CHUNK_LEN) {
                reader.seek(SeekFrom::Start(start as u64)).unwrap();
                let mut part = vec![0; CHUNK_LEN.min(len - start)];
                let read = reader.read_exact(&mut part);
                prop_assert_eq!(read.is_err(), start == bad);
                prop_assert!(start == bad || part == message[start..start + part.len()]);
            }
        } else {
            prop_assert!(at / SEALED_CHUNK_LEN == len / CHUNK_LEN, "the last chunk was changed");
        }
    }
}

#[test]
fn a_longer_ciphertext_is_refused() {
    for (len, more) in [(5, 1), (5, 16), (5, SEALED_CHUNK_LEN), (CHUNK_LEN, 16), (0, 16)] {
        let sealed = [chunks(&message(len)), vec![0; more]].concat();
        let (opened, result) = read_all(Reader::new(&*sealed, new_key().0));
        assert_eq!(
            (kind(result), opened.len()),
            (ErrorKind::InvalidData, len / CHUNK_LEN * CHUNK_LEN)
        );
        let opened = parallel::open(&new_key().0, &*sealed, io::sink(), threads(2));
        assert_eq!(kind(opened), ErrorKind::InvalidData);
        let reader = RandomReader::new(Cursor::new(sealed), new_key().0, 0);
        assert_eq!(kind(reader), ErrorKind::InvalidData);
    }
}

#[test]
fn a_writer_that_failed_completes_nothing() {
    let mut writer = Writer::new(Failing(SEALED_CHUNK_LEN + 10), new_key().0);
    writer.write_all(&message(CHUNK_LEN)).unwrap();
    assert_eq!(kind(writer.write_all(&message(CHUNK_LEN))), ErrorKind::BrokenPipe);
    assert_eq!(kind(writer.write_all(b"more")), ErrorKind::Other);
    assert_eq!(kind(writer.finish()), ErrorKind::Other);
    for number in 1..4 {
        let (key, endless) = (new_key().0, io::repeat(7));
        let sealed = parallel::seal(&key, endless, Failing(3 * BATCH), threads(number));
        assert_eq!(kind(sealed), ErrorKind::BrokenPipe);
    }
}

#[test]
fn a_reader_that_fails_ends_everything_and_seals_nothing() {
    for number in 1..4 {
        let mut sealed = Vec::new();
        let result = parallel::seal(&new_key().0, Failing(2 * BATCH), &mut sealed, threads(number));
        assert_eq!(kind(result), ErrorKind::ConnectionReset);
        assert_eq!(kind(read_all(Reader::new(&*sealed, new_key().0)).1), ErrorKind::InvalidData);
    }
    let mut reader = Reader::new(Failing(10), new_key().0);
    for _ in 0..3 {
        assert_eq!(kind(reader.read(&mut [0])), ErrorKind::ConnectionReset, "not an end");
    }
}

#[test]
fn a_writer_that_is_dropped_leaves_what_does_not_open() {
    for len in [0, 5, CHUNK_LEN, 2 * CHUNK_LEN + 5] {
        let mut sealed = Vec::new();
        let mut writer = Writer::new(&mut sealed, new_key().0);
        writer.write_all(&message(len)).unwrap();
        drop(writer);
        assert_eq!(sealed.len(), len / CHUNK_LEN * SEALED_CHUNK_LEN);
        assert_eq!(kind(read_all(Reader::new(&*sealed, new_key().0)).1), ErrorKind::InvalidData);
    }
}

#[test]
fn positions_are_those_of_the_message() {
    let message = message(2 * CHUNK_LEN + 5);
    let sealed = Cursor::new(chunks(&message));
    let mut reader = RandomReader::new(sealed, new_key().0, 0).unwrap();
    let mut five = [0; 5];
    assert_eq!(reader.seek(SeekFrom::End(-5)).unwrap(), 2 * CHUNK_LEN as u64);
    reader.read_exact(&mut five).unwrap();
    assert_eq!(five, message[2 * CHUNK_LEN..]);
    assert_eq!(reader.read(&mut five).unwrap(), 0, "the end");
    assert_eq!(reader.seek(SeekFrom::Current(-10)).unwrap(), 2 * CHUNK_LEN as u64 - 5);
    assert_eq!(reader.read(&mut [0; 10]).unwrap(), 5, "to the end of the chunk");
    assert_eq!(reader.seek(SeekFrom::Start(1 << 40)).unwrap(), 1 << 40);
    assert_eq!(reader.read(&mut five).unwrap(), 0, "behind the end");
    assert_eq!(kind(reader.seek(SeekFrom::Current(-(1 << 41)))), ErrorKind::InvalidInput);
    assert_eq!(reader.stream_position().unwrap(), 1 << 40, "an error moves nothing");
}
