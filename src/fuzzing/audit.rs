//! The audit log: there is one text for each line that proves others, and no edit of a log is
//! accepted.

use std::io::Cursor;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use crate::audit::keys::{PublicKey, SigningKey};
use crate::audit::line::{Before, Kind, prefix, seq};
use crate::audit::note::Signed;
use crate::audit::sealer::Sealer;
use crate::audit::verify::{Report, Source, verify};

use super::edited;

/// A line, or a checkpoint that was kept elsewhere.
pub fn audit_line(line: &[u8]) {
    if let Some(number) = seq(line) {
        assert!(line.starts_with(prefix(number).as_bytes()));
        if let Kind::Proof(proof) = Kind::of(line, number) {
            assert_eq!(proof.to_line(), line);
        }
    }
    let Ok(text) = str::from_utf8(line) else { return };
    if let Ok(signed) = text.parse::<Signed>() {
        assert_eq!(signed.to_string(), text);
        assert_eq!(signed.is_signed_by(&whole().1), text == whole().2);
    }
}

/// An edit of a log, as [`edited`] reads it. The verifier takes the log for complete only if it is.
pub fn audit_log(edit: &[u8]) {
    let (log, key, _) = whole();
    let changed = edited(log, edit);
    let is_complete = |report: Report| {
        let sizes: Vec<_> = report.logs.iter().map(|it| (it.size, it.unproved)).collect();
        report.problems.is_empty() && report.remarks.is_empty() && sizes == [(8, 0)]
    };
    assert_eq!(is_complete(check(&changed, &[*key])), changed == *log);
    // Without a key that is known, the text alone is no proof: but it must be read.
    check(edit, &[]);
}

fn check(log: &[u8], keys: &[PublicKey]) -> Report {
    let source = Source::new("log".to_owned(), Box::new(Cursor::new(log.to_vec()))).unwrap();
    verify(vec![source], keys, &[], |_| {}).unwrap()
}

/// A log of eight lines, the key that signed it, and its last checkpoint.
fn whole() -> &'static (Vec<u8>, PublicKey, String) {
    static LOG: OnceLock<(Vec<u8>, PublicKey, String)> = OnceLock::new();
    LOG.get_or_init(|| {
        let now =
            |second: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + second);
        let mut sealer = Sealer::new(SigningKey::from_seed(&[1; 32]).unwrap(), "a");
        let mut log = sealer.opening(Before::Nothing, now(0));
        log.push(b'\n');
        for number in 1..8 {
            let line = if matches!(number, 4 | 7) {
                sealer.checkpoint(now(number))
            } else {
                let seq = sealer.size();
                let line = format!("{}\"time\":\"{number}\",\"aad\":\"row\"}}", prefix(seq));
                sealer.append(line.as_bytes());
                line.into_bytes()
            };
            log.extend_from_slice(&line);
            log.push(b'\n');
        }
        (log, sealer.public_key(), sealer.last().unwrap().to_string())
    })
}
