//! Objects read back as written, and damaged ones are refused.

use super::*;
use crate::store::record::Wrap;

fn chain() -> ChainName {
    ChainName::new("orders").unwrap()
}

const ID: KekId = KekId::from_bytes([7; 16]);

fn wrap(root: &str, byte: u8) -> Wrap {
    Wrap { root: root.to_owned(), bytes: vec![byte] }
}

fn kek(state: State, disabled_at: Option<u64>, wraps: &[Wrap]) -> Kek {
    let wraps = wraps.to_vec();
    Kek {
        suite: Suite::Aes128Gcm,
        state,
        created_at: 1,
        promoted_at: None,
        disabled_at,
        exposed: false,
        wraps,
    }
}

fn retired() -> Kek {
    kek(State::Retired, None, &[wrap("main", 1)])
}

#[test]
fn objects_read_back_as_written() {
    let bytes = encode_kek(&chain(), ID, &retired()).unwrap();
    assert_eq!(decode_kek(&chain(), ID, &bytes), Ok(retired()));
    let text = String::from_utf8(bytes).unwrap();
    let begins = format!(r#"{{"format":1,"chain":"orders","kek_id":"{ID}","sha256":""#);
    assert!(text.starts_with(&begins), "{text}");
    assert!(text.contains(r#""record":"{\"format\":1,\"record\":{\"suite\""#), "{text}");

    let settings = Chain { suite: Suite::Aes256Gcm, limits: Limits::default(), inline: true };
    let bytes = encode_chain(&chain(), &settings).unwrap();
    assert_eq!(decode_chain(&chain(), &bytes), Ok(settings));
}

/// The digest as a shell computes it:
/// `printf 'orders\n0707...07\n{"suite":...}' | sha256sum`.
#[test]
fn the_digest_is_that_of_the_document() {
    assert_eq!(
        digest(&chain(), Some(ID), "{}"),
        "59b40854826dcc99d3be88ebd8f31e6e334ed337752fcb2ef6b5b20daf3a7b44"
    );
    assert_eq!(
        digest(&chain(), None, "{}"),
        "4280a69ac7d2a0cc3cdeeea26d165530715ae82897f7c08d7f466183a6daeb3a"
    );
}

#[test]
fn an_object_that_is_damaged_or_at_another_key_is_refused() {
    let bytes = encode_kek(&chain(), ID, &retired()).unwrap();
    let text = String::from_utf8(bytes.clone()).unwrap();
    let other_chain = ChainName::new("others").unwrap();
    let error = decode_kek(&other_chain, ID, &bytes).unwrap_err();
    assert_eq!(error.key, kek_key(&other_chain, ID));
    assert!(decode_kek(&chain(), KekId::from_bytes([8; 16]), &bytes).is_err());
    assert!(decode_chain(&chain(), &bytes).is_err());
    for (from, to, detail) in [
        ("{\"format\":1", "{\"format\":2", "its format is 2"),
        ("retired", "primary", "SHA-256"),
        ("\\\"created_at\\\":1", "\\\"created_at\\\":2", "SHA-256"),
        ("\"sha256\"", "\"sha255\"", "unknown field"),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        let error = decode_kek(&chain(), ID, changed.as_bytes()).unwrap_err();
        assert!(error.detail.contains(detail), "{error}");
    }
    // Every prefix, and every bit: only a complete and unchanged object is read.
    for len in 0..bytes.len() {
        assert!(decode_kek(&chain(), ID, &bytes[..len]).is_err(), "{len}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(decode_kek(&chain(), ID, &changed).is_err(), "bit {bit}");
    }
}

#[test]
fn records_that_no_service_writes_are_refused() {
    let without = kek(State::Retired, None, &[]);
    let with = kek(State::Destroyed, Some(5), &[wrap("main", 1)]);
    for bad in [without, with] {
        let bytes = encode_kek(&chain(), ID, &bad).unwrap();
        assert!(decode_kek(&chain(), ID, &bytes).unwrap_err().detail.contains("no wraps"));
    }
    let limits = Limits { max_uses: (1 << 32) + 1, ..Limits::default() };
    let settings = Chain { suite: Suite::Aes128Gcm, limits, inline: false };
    let bytes = encode_chain(&chain(), &settings).unwrap();
    assert!(decode_chain(&chain(), &bytes).unwrap_err().detail.contains("2^32"));
}

#[test]
fn keys_are_read_back_as_they_were_made() {
    for (key, part) in [(chain_key(&chain()), Part::Chain), (kek_key(&chain(), ID), Part::Kek(ID))]
    {
        assert!(key.starts_with(&chain_prefix(&chain())));
        assert_eq!(parse_key(&key), Some((chain(), part)), "{key}");
        assert_eq!(parse_key(&format!("{key}/x")), None);
    }
    for none in ["", "v1/", "v1/orders", "v1/orders/x.json", "v1/A/chain.json", "v2/a/chain.json"] {
        assert_eq!(parse_key(none), None, "{none}");
    }
}

#[test]
fn a_merge_never_goes_back_in_the_life_of_a_kek() {
    let at = |state, disabled_at| kek(state, disabled_at, &[wrap("main", 1)]);
    let life = [
        at(State::Retired, None),
        at(State::Disabled, Some(5)),
        at(State::Retired, Some(5)),
        at(State::Disabled, Some(9)),
        kek(State::Destroyed, Some(9), &[]),
    ];
    for (later, new) in life.iter().enumerate() {
        for (earlier, archived) in life.iter().enumerate() {
            for wraps in [Wraps::Join, Wraps::Replace] {
                let expected =
                    if later > earlier { Merged::Replace(new.clone()) } else { Merged::Keep };
                assert_eq!(merge(archived, new, wraps), expected, "{archived:?} {new:?}");
            }
        }
    }
    // A tombstone keeps no wrap, even if the new record has one.
    let with_wraps = at(State::Destroyed, Some(9));
    assert_eq!(merge(&life[0], &with_wraps, Wraps::Join), Merged::Replace(life[4].clone()));
}

#[test]
fn standby_primary_and_retired_make_no_write() {
    let states = [
        kek(State::Standby, None, &[wrap("main", 1)]),
        Kek { promoted_at: Some(2), ..kek(State::Primary, None, &[wrap("main", 1)]) },
        Kek { promoted_at: Some(2), ..retired() },
    ];
    for archived in &states {
        for new in &states {
            assert_eq!(merge(archived, new, Wraps::Join), Merged::Keep);
        }
        let disabled = kek(State::Disabled, Some(5), &[wrap("main", 1)]);
        assert_eq!(merge(&disabled, archived, Wraps::Join), Merged::Keep);
        let promoted_at = archived.promoted_at;
        let merged = Merged::Replace(Kek { promoted_at, ..disabled.clone() });
        assert_eq!(merge(archived, &disabled, Wraps::Join), merged);
    }
}

#[test]
fn wraps_are_added_and_only_a_deliberate_removal_removes_them() {
    let both = kek(State::Retired, None, &[wrap("a", 1), wrap("b", 2)]);
    let with = |wraps: &[Wrap]| kek(State::Primary, None, wraps);
    let joined = |wraps: &[Wrap]| Merged::Replace(kek(State::Retired, None, wraps));
    let (a, b, c) = (wrap("a", 1), wrap("b", 2), wrap("c", 3));
    for (new, join, replace) in [
        (vec![b.clone(), a.clone()], Merged::Keep, Merged::Keep),
        (vec![b.clone()], Merged::Keep, joined(std::slice::from_ref(&b))),
        (
            vec![b.clone(), c.clone()],
            joined(&[a.clone(), b.clone(), c.clone()]),
            joined(&[b.clone(), c.clone()]),
        ),
        (vec![wrap("a", 9), b.clone()], Merged::Keep, joined(&[wrap("a", 9), b.clone()])),
        (vec![], Merged::Keep, Merged::Keep),
    ] {
        assert_eq!(merge(&both, &with(&new), Wraps::Join), join, "{new:?}");
        assert_eq!(merge(&both, &with(&new), Wraps::Replace), replace, "{new:?}");
    }
    let exposed = Kek { exposed: true, ..with(&[a, b]) };
    let expected = Kek { exposed: true, ..both.clone() };
    assert_eq!(merge(&both, &exposed, Wraps::Join), Merged::Replace(expected.clone()));
    assert_eq!(merge(&expected, &both, Wraps::Replace), Merged::Keep);
}
