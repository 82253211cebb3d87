//! Envelopes with forged inline KEKs: what they cost, and what they cannot do.

use super::*;

/// A forged envelope with this record.
fn forged(record: &[u8], id: KekId) -> Vec<u8> {
    let mut out = Vec::new();
    let version = Version::Inline(record);
    crate::envelope::write_header(
        &mut out,
        version,
        Suite::Aes128Gcm,
        &id,
        &[1; 12],
        &[2; 16],
        &[3; 16],
    );
    out.extend_from_slice(&[4; 20]);
    out
}

fn record(wraps: &[(&'static str, &[u8])]) -> Vec<u8> {
    let wraps = wraps.iter().map(|&(root, wrap)| (root.into(), wrap.to_vec().into())).collect();
    InlineRecord { wraps }.to_bytes().unwrap()
}

#[tokio::test]
async fn forged_records_cost_a_bounded_number_of_calls_and_stop_nothing() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let names = vec![ChainName::new("orders").unwrap()];
    let config = Config {
        chain: ChainConfig { names, ..ChainConfig::with_limits(LOW) },
        cache: CacheConfig { keks: 1, ..CacheConfig::default() },
        ..Config::default()
    };
    let named = vec![root::Named { name: "main".into(), root: Arc::clone(&root) as _ }];
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let store = Arc::new(inline::Store::new());
    let service = KeyService::start(config, store, named, Arc::clone(&clock) as _, metrics).await;
    let service = service.unwrap();
    let (own, foreign) =
        (encrypt(&service).await, encrypt(&*inline(&[("main", &root)], &clock).await).await);
    decrypt(&service, &foreign).await.unwrap();
    let (_, before) = calls(&root);
    let flood = async |from: u32, chain: &str| {
        let mut kinds = HashMap::<Kind, usize>::new();
        for number in from..from + 1_000 {
            let id = KekId::from_bytes([7; 16]);
            let envelope = forged(&record(&[("main", &number.to_be_bytes())]), id);
            let refused = kind(service.decrypt(Some(chain), envelope, b"").await);
            *kinds.entry(refused).or_default() += 1;
        }
        kinds
    };
    let kinds = flood(0, DEFAULT_CHAIN).await;
    let expected = [(Kind::InvalidCiphertext, 100), (Kind::Overloaded, 900)];
    assert_eq!((kinds, calls(&root).1 - before), (expected.into(), 100));
    // KEKs in memory, other chains and new KEKs still work, and the root counts as healthy.
    for envelope in [&own, &foreign] {
        assert_eq!(decrypt(&service, envelope).await.unwrap(), b"hello");
    }
    service.rotate(None).await.unwrap();
    encrypt(&service).await;
    assert_eq!(service.readiness().health, Health::Ok);
    assert!(service.readiness().checks.iter().all(|check| check.detail.is_none()));
    let (_, before) = calls(&root);
    flood(0, "orders").await;
    assert_eq!(calls(&root).1 - before, 100, "each chain has its own limit");

    // A record that was just refused costs no call, and time allows more calls.
    let (_, before) = calls(&root);
    flood(950, DEFAULT_CHAIN).await;
    clock.advance(Duration::from_secs(20));
    flood(5_000, DEFAULT_CHAIN).await;
    assert_eq!(calls(&root).1 - before, 20);
    clock.advance(Duration::from_secs(1_000));
    let one = forged(&record(&[("main", b"x")]), KekId::from_bytes([8; 16]));
    let (_, before) = calls(&root);
    for _ in 0..100 {
        assert_eq!(kind(decrypt(&service, &one).await), Kind::InvalidCiphertext);
    }
    assert_eq!(calls(&root).1 - before, 1);
}

#[tokio::test]
async fn forged_records_call_each_configured_root_once_at_most() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let service = inline(&[("main", &root)], &clock).await;
    let foreign = encrypt(&*inline(&[("main", &root)], &clock).await).await;
    decrypt(&service, &foreign).await.unwrap();
    let ask = async |record: Vec<u8>| {
        let before = calls(&root).1;
        let refused = kind(decrypt(&service, &forged(&record, KekId::from_bytes([9; 16]))).await);
        (refused, calls(&root).1 - before)
    };
    let many = record(&vec![("main", &[1; 40][..]); 500]);
    assert_eq!(ask(many).await, (Kind::InvalidCiphertext, 1));
    let stranger = record(&[("elsewhere", &[1; 40])]);
    assert_eq!(ask(stranger).await, (Kind::UnknownKek, 0));
    let beside = record(&[("elsewhere", &[1; 40]), ("main", &[2; 40])]);
    assert_eq!(ask(beside).await, (Kind::InvalidCiphertext, 1));
    let longer = record(&[("main", &[1; 1025])]);
    assert_eq!(ask(longer).await, (Kind::InvalidCiphertext, 0), "no root makes such a wrap");
}

#[tokio::test]
async fn a_forged_id_before_a_good_record_has_no_effect_on_others() {
    let (root, clock): (Arc<TestRoot>, Arc<ManualClock>) = Default::default();
    let roots = [("main", &root)];
    let (maker, reader) = (inline(&roots, &clock).await, inline(&roots, &clock).await);
    let envelope = encrypt(&maker).await;
    let Version::Inline(record) = Envelope::parse(&envelope).unwrap().header.version else {
        panic!("it is version 2");
    };
    let bad = forged(record, KekId::from_bytes([9; 16]));
    assert_eq!(kind(decrypt(&reader, &bad).await), Kind::RootUnavailable);
    assert_eq!(decrypt(&reader, &envelope).await.unwrap(), b"hello");
}

/// A root that waits for eight concurrent calls, and is away after `takes`.
struct Tired {
    eight: tokio::sync::Barrier,
    clock: Arc<ManualClock>,
    takes: Duration,
    asked: std::sync::atomic::AtomicUsize,
    /// All wraps are wrong, immediately.
    awake: AtomicBool,
}

#[async_trait::async_trait]
impl root::RootKey for Tired {
    async fn wrap(
        &self,
        _: root::Context<'_>,
        _: &crate::secret::KeyBytes,
    ) -> Result<Vec<u8>, root::Error> {
        Err(root::Error::Away("tired".to_owned()))
    }

    async fn unwrap(
        &self,
        _: root::Context<'_>,
        _: &[u8],
    ) -> Result<crate::secret::KeyBytes, root::Error> {
        self.asked.fetch_add(1, SeqCst);
        if self.awake.load(SeqCst) {
            return Err(root::Error::Wrong("forged".to_owned()));
        }
        if self.eight.wait().await.is_leader() {
            self.clock.advance(self.takes);
        }
        self.eight.wait().await;
        Err(root::Error::Away("tired".to_owned()))
    }

    fn kind(&self) -> &'static str {
        "tired"
    }
}

/// A call that a root does not answer in time counts like a wrong wrap. An outage that is reported
/// immediately does not count.
#[tokio::test]
async fn forged_records_that_take_long_are_limited() {
    for (takes, left) in [(3, 50), (1, 100)] {
        let clock = Arc::<ManualClock>::default();
        let tired = Arc::new(Tired {
            eight: tokio::sync::Barrier::new(8),
            clock: Arc::clone(&clock),
            takes: Duration::from_secs(takes),
            asked: 0.into(),
            awake: false.into(),
        });
        let named = vec![root::Named { name: "main".into(), root: Arc::clone(&tired) as _ }];
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let (store, clock) = (Arc::new(inline::Store::new()), Arc::clone(&clock) as _);
        let service = KeyService::start(Config::default(), store, named, clock, metrics).await;
        let service = service.unwrap();
        let envelope = |number: u32| {
            forged(&record(&[("main", &number.to_be_bytes())]), KekId::from_bytes([7; 16]))
        };
        for round in 0..10 {
            let decrypts: Vec<_> = (0..8)
                .map(|number| {
                    let (service, envelope) = (Arc::clone(&service), envelope(8 * round + number));
                    tokio::spawn(async move { kind(decrypt(&service, &envelope).await) })
                })
                .collect();
            for decrypt in decrypts {
                assert_eq!(decrypt.await.unwrap(), Kind::RootUnavailable);
            }
        }
        tired.awake.store(true, SeqCst);
        let before = tired.asked.load(SeqCst);
        for number in 1_000..1_200 {
            assert!(decrypt(&service, &envelope(number)).await.is_err());
        }
        assert_eq!(tired.asked.load(SeqCst) - before, left, "{takes} s");
    }
}
