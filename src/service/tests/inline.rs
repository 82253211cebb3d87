//! Services without a store, whose KEKs are inline, and services with a store beside them.

use super::*;
use crate::envelope::InlineRecord;
use crate::keychain::kek::Kek;
use crate::store::inline;

mod forged;
mod setting;

type Roots<'a> = &'a [(&'a str, &'a Arc<TestRoot>)];

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A process without a store.
async fn inline(roots: Roots<'_>, clock: &Arc<ManualClock>) -> Arc<KeyService> {
    start(Arc::new(inline::Store::new()), roots, clock).await
}

/// A process with its own store.
async fn stored(roots: Roots<'_>, clock: &Arc<ManualClock>) -> Arc<KeyService> {
    start(Arc::new(memory::Store::new()), roots, clock).await
}

async fn encrypt(service: &KeyService) -> Vec<u8> {
    service.encrypt(None, b"hello".into(), b"aad").await.unwrap().envelope.into()
}

async fn decrypt(service: &KeyService, envelope: &[u8]) -> Result<Vec<u8>, Error> {
    let opened = service.decrypt(None, envelope.to_vec(), b"aad").await?;
    Ok(opened.plaintext.as_slice().to_vec())
}

/// The names of the roots in the inline record; none without one.
fn travels_with(envelope: &[u8]) -> Vec<String> {
    match Envelope::parse_header_or_whole(envelope).unwrap().header.version.record() {
        None => Vec::new(),
        Some(record) => {
            let wraps = InlineRecord::parse(record).unwrap().wraps.into_iter();
            wraps.map(|(root, _)| root.into_owned()).collect()
        }
    }
}

fn kek_id(envelope: &[u8]) -> KekId {
    Envelope::parse_header_or_whole(envelope).unwrap().header.kek_id
}

fn calls(root: &TestRoot) -> (usize, usize) {
    (root.wraps.load(SeqCst), root.unwraps.load(SeqCst))
}

#[tokio::test]
async fn a_kek_is_made_at_first_use_and_a_foreign_one_costs_one_call() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let roots = [("main", &root)];
    let (one, two) = (inline(&roots, &clock).await, inline(&roots, &clock).await);
    assert_eq!(one.readiness().health, Health::Ok);
    for _ in 0..3 {
        one.run_reserver().await;
        one.run_rotator().await;
    }
    assert_eq!(calls(&root), (0, 0), "there was no request yet");
    let envelope = encrypt(&one).await;
    assert_eq!((calls(&root), travels_with(&envelope)), ((1, 0), vec!["main".to_owned()]));
    let theirs = encrypt(&two).await;
    assert_eq!(calls(&root), (2, 0));
    assert_ne!(kek_id(&envelope), kek_id(&theirs));

    root.slow.store(true, SeqCst);
    let decrypts: Vec<_> = (0..1_000)
        .map(|_| {
            let (two, envelope) = (Arc::clone(&two), envelope.clone());
            tokio::spawn(async move { decrypt(&two, &envelope).await.unwrap() })
        })
        .collect();
    for decrypt in decrypts {
        assert_eq!(decrypt.await.unwrap(), b"hello");
    }
    assert_eq!(calls(&root), (2, 1));
    assert_eq!(decrypt(&one, &theirs).await.unwrap(), b"hello");
    assert_eq!(calls(&root), (2, 2));

    root.away.store(true, SeqCst);
    for service in [&one, &two] {
        for envelope in [&envelope, &theirs] {
            assert_eq!(decrypt(service, envelope).await.unwrap(), b"hello");
        }
        encrypt(service).await;
        assert!(service.decrypt(None, envelope.clone(), b"daa").await.is_err());
    }
    assert_eq!(calls(&root), (2, 2));
    // What a restart has forgotten is opened again, and what it makes is new.
    root.away.store(false, SeqCst);
    two.stop().await;
    let two = inline(&roots, &clock).await;
    assert_eq!(decrypt(&two, &theirs).await.unwrap(), b"hello");
    assert_ne!(kek_id(&encrypt(&two).await), kek_id(&theirs));
    assert_eq!(calls(&root), (3, 3));
}

#[tokio::test]
async fn the_creation_of_a_first_kek_that_failed_is_retried_without_a_request() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let service = inline(&[("main", &root)], &clock).await;
    root.away.store(true, SeqCst);
    let failed = service.encrypt(None, b"hello".into(), b"").await;
    assert_eq!(kind(failed), Kind::RootUnavailable);
    assert_eq!(service.readiness().health, Health::Down);
    root.away.store(false, SeqCst);
    clock.advance(Duration::from_secs(60));
    for _ in 0..2 {
        service.run_reserver().await;
        service.run_rotator().await;
    }
    assert_eq!(service.readiness().health, Health::Ok, "else no caller would be sent here again");
}

/// Nothing panics or opens, and a root is called only if the record names it.
#[tokio::test]
async fn every_flipped_bit_and_every_truncation_of_a_header_fails() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let roots = [("main", &root)];
    let maker = inline(&roots, &clock).await;
    let envelope = encrypt(&maker).await;
    let header_len = Envelope::parse(&envelope).unwrap().header.bytes.len();
    let (cold, warm) = (inline(&roots, &clock).await, inline(&roots, &clock).await);
    decrypt(&warm, &envelope).await.unwrap();
    let with_store = stored(&roots, &clock).await;
    for service in [&cold, &warm, &with_store] {
        for bit in 0..header_len * 8 {
            let mut changed = envelope.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let refused = kind(decrypt(service, &changed).await);
            let expected = match refused {
                Kind::InvalidCiphertext | Kind::UnknownKek => true,
                // A root that has opened nothing may have another key than the one that is meant.
                Kind::RootUnavailable => !std::ptr::eq(service, &warm),
                _ => false,
            };
            assert!(expected, "bit {bit}: {refused:?}");
            let header = &changed[..header_len];
            assert!(service.rewrap(None, header.to_vec()).await.is_err(), "bit {bit}");
            clock.advance(Duration::from_secs(2));
        }
        for len in 0..envelope.len() {
            let refused = kind(decrypt(service, &envelope[..len]).await);
            assert_eq!(refused, Kind::InvalidCiphertext, "{len}");
        }
        assert_eq!(
            decrypt(service, &envelope).await.unwrap(),
            b"hello",
            "the unchanged envelope opens"
        );
    }
}

#[tokio::test]
async fn a_record_of_another_envelope_fails() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let roots = [("main", &root), ("dr", &root)];
    let (one, two) = (inline(&roots, &clock).await, inline(&[roots[0]], &clock).await);
    let envelopes = [encrypt(&one).await, encrypt(&two).await];
    one.rotate(None).await.unwrap();
    let envelopes = [&envelopes[..], &[encrypt(&one).await]].concat();
    let reader = inline(&roots, &clock).await;
    for ours in &envelopes {
        for theirs in envelopes.iter().filter(|theirs| *theirs != ours) {
            let Version::Inline(record) = Envelope::parse(theirs).unwrap().header.version else {
                panic!("it is version 2");
            };
            let parsed = Envelope::parse(ours).unwrap();
            let Version::Inline(own) = parsed.header.version else { panic!("it is version 2") };
            let (start, end) = (&ours[..18], &ours[20 + own.len()..]);
            let len = u16::try_from(record.len()).unwrap().to_be_bytes();
            let exchanged = [start, &len, record, end].concat();
            for service in [&one, &two, &reader] {
                let refused = kind(decrypt(service, &exchanged).await);
                let expected = [Kind::InvalidCiphertext, Kind::RootUnavailable];
                assert!(expected.contains(&refused), "{refused:?}");
            }
        }
        // With the KEK in memory no root is called, and the envelope still does not open.
        assert_eq!(decrypt(&reader, ours).await.unwrap(), b"hello");
    }
}

/// A root that unwraps any bytes, to a key with another id.
struct Lying;

#[async_trait::async_trait]
impl root::RootKey for Lying {
    async fn wrap(
        &self,
        _: root::Context<'_>,
        kek: &crate::secret::KeyBytes,
    ) -> Result<Vec<u8>, root::Error> {
        Ok(kek.expose().to_vec())
    }

    async fn unwrap(
        &self,
        context: root::Context<'_>,
        _: &[u8],
    ) -> Result<crate::secret::KeyBytes, root::Error> {
        crate::secret::KeyBytes::random(context.suite)
            .map_err(|error| root::Error::Away(error.to_string()))
    }

    fn kind(&self) -> &'static str {
        "lying"
    }
}

#[tokio::test]
async fn a_foreign_kek_is_checked_against_its_id() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let envelope = encrypt(&*inline(&[("main", &root)], &clock).await).await;
    let named = vec![root::Named { name: "main".into(), root: Arc::new(Lying) }];
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let store = Arc::new(inline::Store::new());
    let clock = Arc::clone(&clock) as _;
    let reader = KeyService::start(Config::default(), store, named, clock, metrics).await.unwrap();
    assert_eq!(kind(decrypt(&reader, &envelope).await), Kind::RootUnavailable);
    assert!(reader.inline_keks().is_empty());
}

/// To a root with another key, a good envelope looks like a forged one. Callers may discard what is
/// called invalid.
#[tokio::test]
async fn a_root_that_has_opened_nothing_of_others_calls_no_envelope_invalid() {
    let (right, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let wrong = Arc::new(TestRoot::with_key(1));
    let maker = inline(&[("main", &right)], &clock).await;
    let (envelope, other) = {
        let before = encrypt(&maker).await;
        maker.rotate(None).await.unwrap();
        (before, encrypt(&maker).await)
    };
    // Of either kind, and also after it has opened its own KEKs.
    for reader in
        [inline(&[("main", &wrong)], &clock).await, stored(&[("main", &wrong)], &clock).await]
    {
        assert_eq!(kind(decrypt(&reader, &envelope).await), Kind::RootUnavailable);
        let own = encrypt(&reader).await;
        assert_eq!(decrypt(&reader, &own).await.unwrap(), b"hello");
        assert_eq!(kind(decrypt(&reader, &other).await), Kind::RootUnavailable);
    }
    // The right root shows that it is the right one by opening one of them.
    let reader = inline(&[("main", &right)], &clock).await;
    let mut damaged = other.clone();
    damaged[2] ^= 1;
    assert_eq!(kind(decrypt(&reader, &damaged).await), Kind::RootUnavailable);
    decrypt(&reader, &envelope).await.unwrap();
    clock.advance(DAY);
    assert_eq!(kind(decrypt(&reader, &damaged).await), Kind::InvalidCiphertext);
}

#[tokio::test]
async fn foreign_keks_follow_the_rules_of_age_and_outage() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let roots = [("main", &root)];
    let (maker, reader) = (inline(&roots, &clock).await, inline(&roots, &clock).await);
    let envelope = encrypt(&maker).await;
    decrypt(&reader, &envelope).await.unwrap();
    let unwraps = || calls(&root).1;
    clock.advance(DAY / 2);
    reader.look_after_keks().await;
    assert_eq!(unwraps(), 1, "not due yet");
    clock.advance(DAY / 2);
    reader.look_after_keks().await;
    reader.look_after_keks().await;
    assert_eq!(unwraps(), 2);

    root.away.store(true, SeqCst);
    clock.advance(DAY + DAY / 2);
    reader.look_after_keks().await;
    assert_eq!(decrypt(&reader, &envelope).await.unwrap(), b"hello", "the grace");
    clock.advance(DAY);
    reader.look_after_keks().await;
    assert_eq!(kind(decrypt(&reader, &envelope).await), Kind::RootUnavailable);
    assert_eq!(reader.readiness().health, Health::Ok, "KEKs of callers do not affect readiness");
    root.away.store(false, SeqCst);
    clock.advance(Duration::from_secs(1));
    assert_eq!(decrypt(&reader, &envelope).await.unwrap(), b"hello");

    root.denied.store(true, SeqCst);
    clock.advance(DAY);
    reader.look_after_keks().await;
    assert_eq!(kind(decrypt(&reader, &envelope).await), Kind::RootUnavailable, "immediately");
}

#[tokio::test]
async fn the_stores_record_of_a_kek_takes_precedence_over_an_inline_one() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let (roots, store) = ([("main", &root)], Arc::new(memory::Store::new()));
    let service = start(Arc::clone(&store) as _, &roots, &clock).await;
    let plain = encrypt(&service).await;
    let moved = service.rewrap_inline(None, plain.clone()).await.unwrap();
    assert_eq!(travels_with(&plain), [""; 0]);
    assert_eq!(
        (moved.kek_id, travels_with(&moved.envelope)),
        (kek_id(&plain), vec!["main".into()])
    );
    let again = service.rewrap_inline(None, moved.envelope.clone()).await.unwrap();
    assert_eq!(again.envelope, moved.envelope, "it is current, and costs no use");
    assert_eq!(decrypt(&service, &moved.envelope).await.unwrap(), b"hello");
    let back = service.rewrap(None, moved.envelope.clone()).await.unwrap();
    assert_eq!(travels_with(&back.envelope), [""; 0]);

    // Another process opens it without the store. This one must ask the store.
    let elsewhere = inline(&roots, &clock).await;
    assert_eq!(decrypt(&elsewhere, &moved.envelope).await.unwrap(), b"hello");
    service.rotate(None).await.unwrap();
    service.change_kek(DEFAULT_CHAIN, kek_id(&plain), Change::Disable).await.unwrap();
    let replica = start(Arc::clone(&store) as _, &roots, &clock).await;
    for service in [&service, &replica] {
        for envelope in [&plain, &moved.envelope] {
            assert_eq!(kind(decrypt(service, envelope).await), Kind::KekDisabled);
            let refused = service.rewrap_inline(None, envelope.clone()).await;
            assert_eq!(kind(refused), Kind::KekDisabled);
        }
    }
    clock.advance(DAY);
    service.confirm_states();
    service.change_kek(DEFAULT_CHAIN, kek_id(&plain), Change::Destroy).await.unwrap();
    let late = start(Arc::clone(&store) as _, &roots, &clock).await;
    assert_eq!(kind(decrypt(&late, &moved.envelope).await), Kind::KekDisabled);
    let blind = start(Arc::clone(&store) as _, &roots, &clock).await;
    store.set_down(true);
    let asked = kind(decrypt(&blind, &moved.envelope).await);
    assert_eq!(asked, Kind::StoreUnavailable, "it may be disabled there");
}

#[tokio::test]
async fn envelopes_move_between_the_options_header_by_header() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let roots = [("main", &root)];
    let (one, two) = (inline(&roots, &clock).await, stored(&roots, &clock).await);
    let travelling = encrypt(&one).await;
    assert_eq!(decrypt(&two, &travelling).await.unwrap(), b"hello");
    let moved = two.rewrap(None, travelling.clone()).await.unwrap();
    assert_eq!(
        (moved.previous_kek_id, travels_with(&moved.envelope)),
        (kek_id(&travelling), vec![])
    );
    assert_eq!(decrypt(&two, &moved.envelope).await.unwrap(), b"hello");
    assert_eq!(kind(decrypt(&one, &moved.envelope).await), Kind::UnknownKek);
    let back = two.rewrap_inline(None, moved.envelope).await.unwrap();
    assert_eq!(decrypt(&one, &back.envelope).await.unwrap(), b"hello");
    // Without a store every rewrap embeds the KEK, of a header alone too.
    let header = Envelope::parse(&back.envelope).unwrap().header.bytes.to_vec();
    let own = one.rewrap(None, header.clone()).await.unwrap();
    assert_eq!((own.kek_id, travels_with(&own.envelope).len()), (kek_id(&travelling), 1));
    let whole = [&own.envelope[..], &back.envelope[header.len()..]].concat();
    assert_eq!(decrypt(&two, &whole).await.unwrap(), b"hello");
    // A foreign KEK in memory is no record that the store lost.
    two.look_after_keks().await;
    assert!(!two.is_repairing().await);
}

#[tokio::test]
async fn a_foreign_kek_that_is_stored_and_disabled_later_is_refused() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let (roots, store) = ([("main", &root)], Arc::new(memory::Store::new()));
    let service = start(Arc::clone(&store) as _, &roots, &clock).await;
    let travelling = encrypt(&*inline(&roots, &clock).await).await;
    decrypt(&service, &travelling).await.unwrap();
    let (name, id) = (ChainName::new(DEFAULT_CHAIN).unwrap(), kek_id(&travelling));
    let disabled = record::Kek {
        suite: Suite::Aes128Gcm,
        state: State::Disabled,
        created_at: 1,
        promoted_at: None,
        disabled_at: Some(1),
        exposed: false,
        wraps: vec![record::Wrap { root: "main".to_owned(), bytes: vec![1] }],
    };
    let key = record::kek_key(&name, id);
    let value = record::Record::encode(&disabled).unwrap();
    let txn = store::Txn { puts: vec![(key, value)], ..Default::default() };
    let _ = store.commit(txn).await.unwrap();
    let mut tries = 0;
    while decrypt(&service, &travelling).await.is_ok() {
        tokio::task::yield_now().await;
        tries += 1;
        assert!(tries < 100_000, "the watch reports it");
    }
    assert_eq!(kind(decrypt(&service, &travelling).await), Kind::KekDisabled);
}

#[tokio::test]
async fn what_needs_shared_state_is_a_conflict_that_says_why() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let service = inline(&[("main", &root)], &clock).await;
    let id = kek_id(&encrypt(&service).await);
    let mut refused = Vec::new();
    for name in ["orders", DEFAULT_CHAIN] {
        let put = service.put_chain(name, ChainSettings::default()).await;
        refused.push(put.expect_err("there is nowhere to put it"));
    }
    for change in [Change::Disable, Change::Enable, Change::Destroy] {
        refused.push(service.change_kek(DEFAULT_CHAIN, id, change).await.unwrap_err());
    }
    for change in [RootChange::Rewrap, RootChange::Remove] {
        let changed = service.change_root(DEFAULT_CHAIN, "main", change, None, 1).await;
        refused.push(changed.unwrap_err());
    }
    for error in refused {
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(error.detail().contains("store.kind = \"inline\""), "{error}");
    }
    let unknown = service.encrypt(Some("orders"), b"x".into(), b"").await;
    assert_eq!(kind(unknown), Kind::UnknownChain);
    // It can still be read.
    let (info, keks) = service.chain_with_keks(DEFAULT_CHAIN, None, 10).await.unwrap();
    assert_eq!((info.primary, keks.items.len()), (Some(id), 1));
}

#[tokio::test]
async fn any_root_of_the_record_opens_it_and_one_that_was_away_joins_later() {
    let clock = Arc::default();
    let [main, dr] = [(); 2].map(|()| Arc::<TestRoot>::default());
    let both = [("main", &main), ("dr", &dr)];
    let service = inline(&both, &clock).await;
    dr.away.store(true, SeqCst);
    let early = encrypt(&service).await;
    assert_eq!(travels_with(&early), ["main"]);
    dr.away.store(false, SeqCst);
    service.run_reserver().await;
    service.look_after_keks().await;
    service.run_reserver().await;
    let late = encrypt(&service).await;
    assert_eq!((travels_with(&late).len(), kek_id(&late)), (2, kek_id(&early)));
    let moved = service.rewrap(None, early).await.unwrap();
    assert_eq!(travels_with(&moved.envelope).len(), 2, "an older record is worth a rewrap");
    for root in both {
        let other = inline(&[root], &clock).await;
        for envelope in [&late, &moved.envelope] {
            assert_eq!(decrypt(&other, envelope).await.unwrap(), b"hello");
        }
    }
}

#[tokio::test]
async fn memory_stays_bounded_over_rotations_and_old_envelopes_open() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let service = inline(&[("main", &root)], &clock).await;
    let mut envelopes = Vec::new();
    for _ in 0..100 {
        envelopes.push(encrypt(&service).await);
        clock.advance(Duration::from_secs(10));
        service.rotate(None).await.unwrap();
    }
    let ids: std::collections::HashSet<_> = envelopes.iter().map(|one| kek_id(one)).collect();
    assert_eq!(ids.len(), 100);
    let (info, _) = service.chain_with_keks(DEFAULT_CHAIN, None, 1).await.unwrap();
    assert!(info.keks <= 18, "{}", info.keks);
    for id in ids {
        service.drop_kek(id);
    }
    for envelope in &envelopes {
        assert_eq!(decrypt(&service, envelope).await.unwrap(), b"hello");
    }
    assert_eq!(calls(&root), (101, 100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_concurrent_encrypts_exceed_no_limit() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let service = inline(&[("main", &root)], &clock).await;
    let encrypts: Vec<_> = (0..10_000)
        .map(|_| {
            let service = Arc::clone(&service);
            tokio::spawn(async move { kek_id(&encrypt(&service).await) })
        })
        .collect();
    let mut uses = HashMap::<KekId, u64>::new();
    for encrypt in encrypts {
        *uses.entry(encrypt.await.unwrap()).or_default() += 1;
    }
    assert!(uses.values().all(|&made| made <= LOW.max_uses), "{uses:?}");
    // With so many waiting requests, some KEKs are replaced before their first use.
    let (wraps, unwraps) = calls(&root);
    assert!(wraps >= uses.len() && unwraps == 0, "{wraps} wraps of {} KEKs", uses.len());
}

/// As docs/format.md says. AWS KMS returns wraps of these lengths.
#[tokio::test]
async fn a_header_with_the_wrap_of_aws_kms_stays_below_350_bytes() {
    for (suite, wrap) in [(Suite::Aes128Gcm, 168), (Suite::Aes256Gcm, 184)] {
        for (name, most) in [("main".to_owned(), 280), ("a".repeat(63), 349)] {
            let chain = ChainName::new(DEFAULT_CHAIN).unwrap();
            let kek = Kek::generate(&chain, suite).unwrap();
            let wraps = vec![(name.as_str().into(), vec![7; wrap].into())];
            let inline = {
                let record = InlineRecord { wraps };
                crate::keychain::InlineKek::new(kek.suite(), kek.id(), kek.chain(), &record)
                    .unwrap()
            };
            let mut chain = KeyChain::empty(chain);
            let uses = crate::keychain::budget::Budget::unshared(1);
            chain.set_primary(Arc::new(kek), Arc::new(uses));
            chain.set_inline(Some(Arc::new(inline)));
            let one = chain.take(Monotonic::default()).unwrap().placed(KekPlacement::Inline);
            let sealed: Vec<u8> = one.seal(b"".into(), b"").unwrap().into();
            let header = Envelope::parse(&sealed).unwrap().header.bytes.len();
            assert!(header <= most, "{suite}, a name of {}: {header}", name.len());
        }
    }
}
