//! `audit find`: searches the files of an audit log.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use kms_proxy::audit::find::Query;
use kms_proxy::audit::keys::{HmacKey, Keys, PublicKey, plain_field};
use kms_proxy::audit::line::{Kind, Proof, seq};
use kms_proxy::audit::sealer::rfc3339_millis;
use kms_proxy::aws_api::context_aad;
use kms_proxy::clock::{Clock, SystemClock};

use crate::cli::chains::table;
use crate::cli::stdio::{eprint, print, read_file};
use crate::cli::{Failure, Result};

use super::{failed, open};

const FIND: &str = "\
With `aad = \"hmac\"`, the default, lines contain an HMAC of the AAD. To search for an AAD, the \
key of the HMAC is needed: from the store, with --config, or from a file that `kms-proxy audit key \
--aad-key-file` wrote. It does not verify the lines.

The AAD of a call of the AWS KMS API is made of the encryption context. To search for it, give all \
of its pairs, in any order.

A part of the log that another key has signed has HMACs that this key does not find. It is named \
on stderr, and the exit code is 1: search it with the file of that key.

TIME is like 2026-11-28, 2026-11-28T23:00:00Z, or 24h for the time before now.

Examples:
  kms-proxy audit find --chain orders --aad 'row 7' --config kms-proxy.toml audit.jsonl
  kms-proxy audit find --context tenant=7 --aad-key-file audit-aad.key audit.jsonl
  kms-proxy audit find --client billing --operation decrypt --since 24h --json audit.jsonl";

#[derive(clap::Args)]
#[command(after_help = FIND)]
pub(in crate::cli) struct FindArgs {
    /// Files of the log; `-` is stdin
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The chain
    #[arg(long, value_name = "NAME")]
    chain: Option<String>,
    /// The AAD
    #[arg(long, value_name = "TEXT", group = "searched")]
    aad: Option<String>,
    /// A pair of the encryption context of the AWS KMS API; may be given more than once. KEY ends
    /// at the first `=`
    #[arg(long, value_name = "KEY=VALUE", group = "searched", value_parser = pair)]
    context: Vec<(String, String)>,
    /// The name of the client
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
    /// The operation, such as decrypt
    #[arg(long, value_name = "NAME")]
    operation: Option<String>,
    /// The first time
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<SystemTime>,
    /// The first time that is too late
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<SystemTime>,
    /// Print the lines as they are instead of a table
    #[arg(long)]
    json: bool,
    /// The file with the key of the HMAC
    #[arg(long, value_name = "FILE", requires = "searched")]
    aad_key_file: Option<PathBuf>,
    /// The configuration, in TOML, to read the key of the HMAC from the store
    #[arg(long, value_name = "FILE", env = "KMS_PROXY_CONFIG", conflicts_with = "aad_key_file")]
    config: Option<PathBuf>,
}

fn time(text: &str) -> std::result::Result<SystemTime, &'static str> {
    let long = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    if let Ok(time) = humantime::parse_rfc3339_weak(&long) {
        return Ok(time);
    }
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(SystemClock::new().unix_now());
    let before = humantime::parse_duration(text).ok().and_then(|before| now.checked_sub(before));
    before.ok_or("must be like 2026-11-28, 2026-11-28T23:00:00Z or 24h")
}

fn pair(text: &str) -> std::result::Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// The AAD to search for.
fn searched(args: &FindArgs) -> Result<Option<Vec<u8>>> {
    let FindArgs { aad, context, .. } = args;
    if context.is_empty() {
        return Ok(aad.as_ref().map(|aad| aad.as_bytes().to_vec()));
    }
    for (index, (key, _)) in context.iter().enumerate() {
        if context.iter().take(index).any(|(other, _)| other == key) {
            return Err(Failure::Usage(format!("--context has the key {key:?} twice")));
        }
    }
    let aad = context_aad(context.iter().map(|(key, value)| (&**key, &**value)));
    aad.map(Some).map_err(|error| Failure::Usage(format!("--context: {error}")))
}

/// Prints what is found. `keys` reads the keys of a configuration.
pub(super) fn run(args: FindArgs, keys: impl FnOnce(PathBuf) -> Result<Keys>) -> Result {
    let mut signer = None;
    let aad = match searched(&args)? {
        None => None,
        Some(aad) => {
            let mut any = vec![plain_field(&aad)];
            if let Some((hmac, public)) = hmac_key(&args, keys)? {
                any.push(hmac.field(&aad));
                signer = public;
            }
            Some(any)
        }
    };
    let FindArgs { chain, client, operation, since, until, json, files, .. } = args;
    let (since, until) = (since.map(rfc3339_millis), until.map(rfc3339_millis));
    let query = Query { chain, aad, client, operation, since, until };
    let titles = ["TIME", "NODE", "CLIENT", "OPERATION", "COUNT", "CHAIN", "KEK", "OUTCOME"];
    let (mut rows, mut printed, mut is_complete) = (Vec::new(), false, true);
    for path in &files {
        let (mut reader, _) = open(path)?;
        let (mut line, mut others) = (Vec::new(), signer.map(Others::new));
        while reader.read_until(b'\n', &mut line).map_err(failed(path))? > 0 {
            if let Some(key) = others.as_mut().and_then(|others| others.of_line(&line)) {
                is_complete = false;
                eprint(&format!(
                    "{}: AADs in lines that {key} has signed are not found: they have HMACs under \
                     another key than the one in use",
                    path.display()
                ));
            }
            if let Some(event) = query.find(&line) {
                if json {
                    print(&line)?;
                } else {
                    let text = |it: Option<kms_proxy::audit::find::Text<'_>>| {
                        it.map_or_else(|| "-".to_owned(), |it| it.0.into_owned())
                    };
                    rows.push([
                        event.time.0.into_owned(),
                        text(event.node),
                        text(event.client),
                        text(event.operation),
                        event.count.map_or_else(|| "1".to_owned(), |count| count.to_string()),
                        text(event.chain),
                        text(event.kek_id),
                        text(event.outcome),
                    ]);
                    if rows.len() == MAX_ROWS {
                        print(table(titles, rows.drain(..)).as_bytes())?;
                        printed = true;
                    }
                }
            }
            line.clear();
        }
    }
    if !(json || rows.is_empty() && printed) {
        print(table(titles, rows.into_iter()).as_bytes())?;
    }
    if is_complete { Ok(()) } else { Err(Failure::Silent) }
}

/// The other keys that signed parts of a file.
struct Others {
    key: PublicKey,
    /// The key of the part that is read, if it is another one.
    current: Option<PublicKey>,
    told: Vec<PublicKey>,
}

impl Others {
    fn new(key: PublicKey) -> Self {
        Self { key, current: None, told: Vec::new() }
    }

    /// The other key that signed the part in which this line is, at the first of its lines with an
    /// HMAC.
    fn of_line(&mut self, line: &[u8]) -> Option<PublicKey> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        if let Some(seq) = seq(line)
            && let Kind::Proof(Proof::Opening(opening)) = Kind::of(line, seq)
        {
            self.current = Some(opening.key).filter(|key| *key != self.key);
            return None;
        }
        let current = self.current.filter(|key| !self.told.contains(key))?;
        if !line.windows(HMAC.len()).any(|part| part == HMAC) {
            return None;
        }
        self.told.push(current);
        Some(current)
    }
}

/// How the AAD of a line begins that an HMAC replaced.
const HMAC: &[u8] = br#""aad":"hmac:"#;

/// Lines of a table. More are in the next table, so that memory is bounded.
const MAX_ROWS: usize = 10_000;

/// The key of the HMAC, if one is named, and the public key that belongs to it, if it is known.
fn hmac_key(
    args: &FindArgs,
    keys: impl FnOnce(PathBuf) -> Result<Keys>,
) -> Result<Option<(HmacKey, Option<PublicKey>)>> {
    if let Some(path) = &args.aad_key_file {
        let bytes = zeroize::Zeroizing::new(read_file(path).map_err(failed(path))?);
        return key_file(&bytes).map(Some).ok_or_else(|| {
            let detail = "it must be a file that `kms-proxy audit key --aad-key-file` wrote";
            Failure::Usage(format!("{}: {detail}", path.display()))
        });
    }
    match &args.config {
        Some(config) => {
            let Keys { signing, hmac } = keys(config.clone())?;
            Ok(Some((hmac, Some(signing.public()))))
        }
        None => {
            eprint(
                "without --config or --aad-key-file only AADs in plain text are found, not those \
                 that `aad = \"hmac\"` replaced",
            );
            Ok(None)
        }
    }
}

/// Reads the file of a key: 64 hexadecimal digits, and in the next line the public key, which may
/// be missing.
fn key_file(bytes: &[u8]) -> Option<(HmacKey, Option<PublicKey>)> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    let (key, public) = match text.split_once('\n') {
        Some((key, public)) => (key, Some(public.parse().ok()?)),
        None => (text, None),
    };
    let key = zeroize::Zeroizing::new(base16ct::lower::decode_vec(key.trim()).ok()?);
    Some((HmacKey::from_slice(&key)?, public))
}

#[cfg(test)]
mod tests {
    use kms_proxy::audit::keys::SigningKey;
    use kms_proxy::audit::line::Before;
    use kms_proxy::audit::sealer::Sealer;

    use super::*;

    fn signing(byte: u8) -> SigningKey {
        SigningKey::from_seed(&[byte; 32]).unwrap()
    }

    fn opening(byte: u8) -> Vec<u8> {
        let mut line =
            Sealer::new(signing(byte), "a").opening(Before::Unknown, SystemTime::UNIX_EPOCH);
        line.push(b'\n');
        line
    }

    #[test]
    fn a_part_that_another_key_signed_is_told_once_and_only_if_it_has_hmacs() {
        let mut others = Others::new(signing(1).public());
        let hmac = br#"{"v":1,"seq":1,"aad":"hmac:AAAA","outcome":"ok"}"#;
        let plain = br#"{"v":1,"seq":1,"aad":"text:hmac","outcome":"ok"}"#;
        assert_eq!(others.of_line(hmac), None, "a part without an opening");
        assert_eq!(others.of_line(&opening(1)), None);
        assert_eq!(others.of_line(hmac), None, "the own key");
        assert_eq!(others.of_line(&opening(2)), None);
        assert_eq!(others.of_line(plain), None);
        assert_eq!(others.of_line(hmac), Some(signing(2).public()));
        assert_eq!(others.of_line(hmac), None, "told");
        assert_eq!(others.of_line(&opening(1)), None);
        assert_eq!(others.of_line(hmac), None, "the own key again");
    }

    #[test]
    fn the_file_of_a_key_has_the_public_key_in_its_second_line() {
        let (hex, public) = ("07".repeat(32), signing(1).public());
        let read = |text: &str| key_file(text.as_bytes()).map(|(_, public)| public);
        assert_eq!(read(&format!("{hex}\n{public}\n")), Some(Some(public)));
        assert_eq!(read(&format!("{hex}\n")), Some(None));
        for bad in ["", "07", &format!("{hex}\nx\n"), &format!("{hex}07")] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
