//! A hot path, called a number of times in a function that `valgrind --tool=callgrind` counts the
//! instructions of: `tests/it/instructions.rs` runs it. Without an argument it prints the paths.
//!
//! `instructions PATH CALLS`. It uses chains and streams, and no clock: valgrind does not support
//! the way in which `clock_gettime` is called here.

use std::hint::black_box;
use std::io::{Read, Write, sink};

use kms_proxy::cobblestone::CHUNK_LEN;
use kms_proxy::envelope::header_len;
use kms_proxy::{KeyChain, Suite, stream};

type Error = Box<dyn std::error::Error>;

const PATHS: [&str; 8] = [
    "seal-256-B",
    "open-256-B",
    "seal-4-KiB",
    "open-4-KiB",
    "rewrap",
    "seal-stream-chunk",
    "open-stream-chunk",
    "start-stream",
];
const AAD: &[u8] = b"row 7";
/// Calls before those that are counted: they initialise what is initialised once.
const WARM_UP: usize = 3;

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, calls] = arguments.as_slice() else {
        PATHS.iter().for_each(|path| println!("{path}"));
        return Ok(());
    };
    let calls = calls.parse()?;
    let mut chain = KeyChain::new()?;
    match path.as_str() {
        "seal-256-B" => run(calls, &mut || seal(&chain, &[7; 256])),
        "seal-4-KiB" => run(calls, &mut || seal(&chain, &[7; 4096])),
        "open-256-B" => {
            let envelope = chain.encrypt(&[7; 256], AAD)?;
            run(calls, &mut || open(&chain, &envelope))
        }
        "open-4-KiB" => {
            let envelope = chain.encrypt(&[7; 4096], AAD)?;
            run(calls, &mut || open(&chain, &envelope))
        }
        "rewrap" => {
            let envelope = chain.encrypt(b"", AAD)?;
            let header = envelope.get(..header_len(Suite::Aes128Gcm)).ok_or("no header")?;
            chain.rotate()?;
            run(calls, &mut || {
                black_box(chain.rewrap(black_box(header))?);
                Ok(())
            })
        }
        "start-stream" => run(calls, &mut || {
            black_box(chain.start_stream(black_box(AAD))?);
            Ok(())
        }),
        "seal-stream-chunk" => {
            let (mut writer, chunk) = (stream::seal_to(&chain, sink(), AAD)?, vec![7; CHUNK_LEN]);
            run(calls, &mut || {
                writer.write_all(black_box(chunk.as_slice()))?;
                Ok(())
            })
        }
        "open-stream-chunk" => {
            let mut writer = stream::seal_to(&chain, Vec::new(), AAD)?;
            writer.write_all(&vec![7; (calls + WARM_UP) * CHUNK_LEN])?;
            let envelope = writer.finish()?;
            let mut reader = stream::open_from(&chain, envelope.as_slice(), AAD)?;
            let mut chunk = vec![0; CHUNK_LEN];
            run(calls, &mut || {
                reader.read_exact(black_box(chunk.as_mut_slice()))?;
                Ok(())
            })
        }
        other => Err(format!("{other} is not one of {PATHS:?}").into()),
    }
}

fn seal(chain: &KeyChain, plaintext: &[u8]) -> Result<(), Error> {
    black_box(chain.seal(black_box(plaintext).into(), AAD)?.as_slice());
    Ok(())
}

fn open(chain: &KeyChain, envelope: &[u8]) -> Result<(), Error> {
    black_box(chain.decrypt(black_box(envelope), AAD)?.as_slice());
    Ok(())
}

fn run(calls: usize, path: &mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error> {
    for _ in 0..WARM_UP {
        path()?;
    }
    counted(calls, path)
}

/// Callgrind counts what happens in here.
#[inline(never)]
fn counted(calls: usize, path: &mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error> {
    for _ in 0..calls {
        path()?;
    }
    Ok(())
}
