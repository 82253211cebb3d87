//! Seals and opens a message on several threads, in constant memory.
//!
//! The calling thread reads and writes batches of chunks, and each thread seals or opens every n-th
//! batch: so the order needs no bookkeeping.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use zeroize::Zeroizing;

use crate::aead::TAG_LEN;

use super::{CHUNK_LEN, Invalid, MessageKey, SEALED_CHUNK_LEN};

/// The chunks of a batch: 1 MiB.
const CHUNKS: usize = 64;
/// The batches that a thread has at most: one that it works on, one that waits for it or is done.
const BATCHES: usize = 2;

/// Seals what `reader` gives as one message, and writes its chunks to `writer`, which has the
/// prefix already. Returns the length of the message. It takes about 2 MiB for each of the
/// `threads`.
///
/// # Errors
/// Those of reader and writer, and of a message that is too long. What was written must be thrown
/// away then: it does not open.
pub fn seal(
    key: &MessageKey,
    reader: impl Read,
    writer: impl Write,
    threads: NonZeroUsize,
) -> io::Result<u64> {
    run(&Sealing(key), reader, writer, threads)
}

/// Opens the chunks of a message that `reader` gives, from which the prefix was read already, and
/// writes the message to `writer`. Returns its length.
///
/// # Errors
/// Those of reader and writer. One of kind [`io::ErrorKind::InvalidData`] is an authentication
/// failure, or a message that was cut. What was written until then is authentic, and incomplete.
pub fn open(
    key: &MessageKey,
    reader: impl Read,
    writer: impl Write,
    threads: NonZeroUsize,
) -> io::Result<u64> {
    run(&Opening(key), reader, writer, threads)
}

/// Consecutive chunks: each has its place of [`SEALED_CHUNK_LEN`] bytes.
struct Batch {
    /// The number of the first chunk.
    first: u64,
    buffer: Zeroizing<Vec<u8>>,
    /// The bytes of each chunk. All but the last one of the message are full.
    lens: Vec<usize>,
}

impl Batch {
    fn new() -> Self {
        let buffer = Zeroizing::new(vec![0; CHUNKS * SEALED_CHUNK_LEN]);
        Self { first: 0, buffer, lens: Vec::with_capacity(CHUNKS) }
    }

    /// Reads chunks of `full` bytes. A shorter one is the last one of the message; it may be empty.
    fn fill(&mut self, first: u64, full: usize, reader: &mut impl Read) -> io::Result<()> {
        self.first = first;
        let places = self.buffer.chunks_exact_mut(SEALED_CHUNK_LEN);
        let places = places.map(|place| IoSliceMut::new(place.split_at_mut(full).0));
        let read = read_all(reader, &mut places.collect::<Vec<_>>())?;
        self.lens.clear();
        self.lens.resize(read / full, full);
        if self.lens.len() < CHUNKS {
            self.lens.push(read % full);
        }
        Ok(())
    }

    /// Writes the chunks.
    fn write(&self, writer: &mut impl Write) -> io::Result<()> {
        let places = self.buffer.chunks_exact(SEALED_CHUNK_LEN).zip(&self.lens);
        let places = places.map(|(place, len)| IoSlice::new(place.split_at(*len).0));
        write_all(writer, &mut places.collect::<Vec<_>>())
    }

    /// The chunks with their numbers and places.
    fn chunks(&mut self) -> impl Iterator<Item = (u64, &mut [u8], &mut usize)> {
        let places = self.buffer.chunks_exact_mut(SEALED_CHUNK_LEN).zip(&mut self.lens);
        (self.first..).zip(places).map(|(index, (place, len))| (index, place, len))
    }
}

/// What is done to a chunk.
trait Work: Sync {
    /// The size of what is read for a chunk that is not the last one.
    const FULL: usize;

    /// Works on the first `len` bytes of `place`; gives their new number.
    fn work(&self, index: u64, place: &mut [u8], len: usize) -> io::Result<usize>;

    /// The size of the plaintext of a chunk, given the size of what was written.
    fn message_len(written: usize) -> usize;
}

struct Sealing<'a>(&'a MessageKey);

impl Work for Sealing<'_> {
    const FULL: usize = CHUNK_LEN;

    fn work(&self, index: u64, place: &mut [u8], len: usize) -> io::Result<usize> {
        let (chunk, rest) = place.split_at_mut_checked(len).ok_or(Invalid)?;
        let tag = self.0.seal_chunk(index, chunk)?;
        *rest.first_chunk_mut().ok_or(Invalid)? = tag;
        Ok(len + TAG_LEN)
    }

    fn message_len(written: usize) -> usize {
        written - TAG_LEN
    }
}

struct Opening<'a>(&'a MessageKey);

impl Work for Opening<'_> {
    const FULL: usize = SEALED_CHUNK_LEN;

    fn work(&self, index: u64, place: &mut [u8], len: usize) -> io::Result<usize> {
        let sealed = place.get_mut(..len).ok_or(Invalid)?;
        Ok(self.0.open_chunk(index, sealed)?.len())
    }

    fn message_len(written: usize) -> usize {
        written
    }
}

/// A thread: where it gets its batches, and where it puts them when they are done.
type Worker = (SyncSender<Batch>, Receiver<(Batch, io::Result<()>)>);

fn run<W: Work>(
    work: &W,
    mut reader: impl Read,
    mut writer: impl Write,
    threads: NonZeroUsize,
) -> io::Result<u64> {
    std::thread::scope(|scope| {
        // On an error they are dropped before the threads are waited for, which ends the threads.
        let workers: Vec<Worker> = (0..threads.get())
            .map(|_| {
                let (give, batches) = sync_channel::<Batch>(BATCHES);
                let (done, take) = sync_channel(BATCHES);
                scope.spawn(move || {
                    for mut batch in batches {
                        let worked = work_on(work, &mut batch);
                        if done.send((batch, worked)).is_err() {
                            break;
                        }
                    }
                });
                (give, take)
            })
            .collect();
        let ended = || io::Error::other("a thread has ended");
        let (mut spare, mut total) = (Vec::new(), 0);
        let (mut given, mut taken, mut is_over) = (0_usize, 0_usize, false);
        // The workers in the order of their turns.
        let worker = |turn: usize| workers.get(turn % workers.len()).ok_or_else(ended);
        while !is_over || taken < given {
            if !is_over && given - taken < BATCHES * threads.get() {
                let mut batch: Batch = spare.pop().unwrap_or_else(Batch::new);
                batch.fill((given * CHUNKS) as u64, W::FULL, &mut reader)?;
                is_over = batch.lens.last().is_none_or(|len| *len < W::FULL);
                worker(given)?.0.send(batch).map_err(|_| ended())?;
                given += 1;
                continue;
            }
            let (batch, worked) = worker(taken)?.1.recv().map_err(|_| ended())?;
            taken += 1;
            worked?;
            batch.write(&mut writer)?;
            total += batch.lens.iter().map(|len| W::message_len(*len) as u64).sum::<u64>();
            spare.push(batch);
        }
        writer.flush()?;
        Ok(total)
    })
}

/// Reads until all of `places` is full or `reader` ends, in few calls; gives the number of bytes.
fn read_all(reader: &mut impl Read, mut places: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    let mut total = 0;
    while !places.is_empty() {
        match reader.read_vectored(places) {
            Ok(0) => break,
            Ok(read) => {
                total += read;
                IoSliceMut::advance_slices(&mut places, read);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

/// Writes all of `places` in few calls.
fn write_all(writer: &mut impl Write, mut places: &mut [IoSlice<'_>]) -> io::Result<()> {
    // Those at the start that are empty: writing nothing is no error.
    IoSlice::advance_slices(&mut places, 0);
    while !places.is_empty() {
        match writer.write_vectored(places) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut places, written),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn work_on<W: Work>(work: &W, batch: &mut Batch) -> io::Result<()> {
    for (index, place, len) in batch.chunks() {
        *len = work.work(index, place, *len)?;
    }
    Ok(())
}
