//! Chains that are set to `inline` and have a store: the KEK is in the store and in the envelope.

use proptest::prelude::*;

use super::*;

/// Sets `inline` on the default chain.
async fn set(service: &Arc<KeyService>, inline: bool) {
    let settings = ChainSettings { inline: Some(inline), ..ChainSettings::default() };
    let (_, chain) = service.put_chain(DEFAULT_CHAIN, settings).await.unwrap();
    assert_eq!(chain.inline, inline);
}

fn is_inline(envelope: &[u8]) -> bool {
    !travels_with(envelope).is_empty()
}

async fn rewrap(service: &KeyService, envelope: &[u8]) -> Vec<u8> {
    service.rewrap(None, envelope.to_vec()).await.unwrap().envelope
}

#[tokio::test]
async fn every_call_places_the_kek_as_the_chain_is_set() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let service = stored(&[("main", &root)], &clock).await;
    let before = encrypt(&service).await;
    assert!(!is_inline(&before));

    set(&service, true).await;
    let during = encrypt(&service).await;
    assert_eq!((travels_with(&during), kek_id(&during)), (vec!["main".into()], kek_id(&before)));
    let key = service.datakey(None, 32, b"aad").await.unwrap();
    assert!(is_inline(key.envelope.as_slice()));
    let moved = rewrap(&service, &before).await;
    assert!(is_inline(&moved));
    assert_eq!(rewrap(&service, &moved).await, moved, "it is current, and costs no use");

    set(&service, false).await;
    assert!(!is_inline(&encrypt(&service).await));
    assert!(!is_inline(&rewrap(&service, &during).await));
    let inline = service.rewrap_inline(None, before.clone()).await.unwrap().envelope;
    assert!(is_inline(&inline), "a caller can still request it");
    for envelope in [&before, &during, &moved, &inline] {
        assert_eq!(decrypt(&service, envelope).await.unwrap(), b"hello");
    }
    assert_eq!(calls(&root), (1, 0), "one KEK, in memory all the time");
}

#[tokio::test]
async fn replicas_and_restarts_know_the_setting_and_new_chains_have_the_configured_one() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let store = Arc::new(memory::Store::new());
    let one = start(Arc::clone(&store) as _, &[("main", &root)], &clock).await;
    let two = start(Arc::clone(&store) as _, &[("main", &root)], &clock).await;
    set(&one, true).await;
    super::super::replicas::until("the other replica knows it", async || {
        two.run_reserver().await;
        is_inline(&encrypt(&two).await)
    })
    .await;
    one.rotate(None).await.unwrap();
    assert!(is_inline(&encrypt(&one).await), "the next KEK is inline as well");
    for service in [one, two] {
        service.stop().await;
    }
    let config = |inline| Config {
        chain: ChainConfig { inline, ..ChainConfig::with_limits(LOW) },
        ..Config::default()
    };
    let named = root::Named { name: "main".into(), root: Arc::clone(&root) as _ };
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let clock = Arc::clone(&clock) as Arc<dyn crate::clock::Clock>;
    let start = KeyService::start(config(false), store, vec![named.clone()], clock, metrics);
    let service = start.await.unwrap();
    assert!(is_inline(&encrypt(&service).await), "[chain] is for new chains alone");
    let other = service.put_chain("orders", ChainSettings::default()).await.unwrap().1;
    assert!(!other.inline);

    let (store, metrics) = (memory::Store::new(), Metrics::new(&Registry::new()).unwrap());
    let clock = Arc::new(ManualClock::default()) as Arc<dyn crate::clock::Clock>;
    let start = KeyService::start(config(true), Arc::new(store), vec![named], clock, metrics);
    let service = start.await.unwrap();
    assert!(is_inline(&encrypt(&service).await));
    let info = service.put_chain("orders", ChainSettings::default()).await.unwrap().1;
    assert!(info.inline);
    let off = ChainSettings { inline: Some(false), ..ChainSettings::default() };
    assert!(!service.put_chain("logs", off).await.unwrap().1.inline);
}

/// Their limit holds as for any other use.
#[tokio::test]
async fn inline_uses_are_counted_like_others() {
    let world = World::new(LOW).await;
    set(&world.service, true).await;
    let mut uses = HashMap::<KekId, u64>::new();
    for _ in 0..1_000 {
        let (envelope, id) = world.encrypt().await.unwrap();
        assert!(is_inline(&envelope));
        *uses.entry(id).or_default() += 1;
    }
    for (id, made) in uses {
        let reserved = world.reserved(id).await;
        assert!(made <= reserved && reserved <= 200, "{made} <= {reserved} <= 200");
    }
}

#[tokio::test]
async fn a_disabled_kek_is_refused_although_the_envelope_has_it() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let service = stored(&[("main", &root)], &clock).await;
    set(&service, true).await;
    let envelope = encrypt(&service).await;
    service.rotate(None).await.unwrap();
    service.change_kek(DEFAULT_CHAIN, kek_id(&envelope), Change::Disable).await.unwrap();
    assert_eq!(kind(decrypt(&service, &envelope).await), Kind::KekDisabled);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_setting_can_change_at_any_time_without_touching_old_data(
        steps in proptest::collection::vec((any::<bool>(), any::<bool>(), 1..4_usize), 1..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
            let roots = [("main", &root)];
            let service = stored(&roots, &clock).await;
            let mut envelopes = Vec::new();
            for (inline, rotate, count) in steps {
                set(&service, inline).await;
                if rotate {
                    // Rotations by hand are limited in number per minute.
                    clock.advance(Duration::from_secs(61));
                    service.rotate(None).await.unwrap();
                }
                for _ in 0..count {
                    let envelope = encrypt(&service).await;
                    assert_eq!(is_inline(&envelope), inline);
                    envelopes.push(envelope);
                }
            }
            // The same root, and nothing of the old store. A KEK that came inline would open the
            // other envelopes under it as well, so these are first.
            let fresh = stored(&roots, &clock).await;
            let (inline, others): (Vec<_>, Vec<_>) =
                envelopes.iter().partition(|envelope| is_inline(envelope));
            for envelope in others {
                assert_eq!(decrypt(&service, envelope).await.unwrap(), b"hello");
                assert_eq!(kind(decrypt(&fresh, envelope).await), Kind::UnknownKek);
            }
            for envelope in inline {
                assert_eq!(decrypt(&service, envelope).await.unwrap(), b"hello");
                assert_eq!(decrypt(&fresh, envelope).await.unwrap(), b"hello");
            }
        });
    }
}
