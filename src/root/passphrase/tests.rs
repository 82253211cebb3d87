//! Most tests use a cheap cost, and one test uses the default cost.

use super::*;
use crate::id::Suite;
use crate::root::RootKey;
use crate::root::contract::{self, chain, context, unhex, wrong};

const CHEAP: Cost = Cost { memory: 64, passes: 2, lanes: 1 };

fn root(passphrase: &str) -> Root {
    Root::with_cost(Arc::new(secret(passphrase)), CHEAP)
}

fn secret(text: &str) -> SecretBytes {
    SecretBytes::new(text.as_bytes().to_vec())
}

fn params_of(wrapped: &[u8]) -> KdfParams {
    KdfParams::from_bytes(wrapped[1..].first_chunk().unwrap())
}

/// Whether there is an own key, and the number of others, for tests that count derivations.
fn kept(root: &Root) -> (bool, usize) {
    let keys = root.keys();
    (keys.own.is_some(), keys.proven.len())
}

#[tokio::test]
async fn it_keeps_the_contract() {
    contract::all(root("correct horse"), root("battery staple")).await;
}

/// Computed with Python's `argon2-cffi` and `cryptography`.
#[tokio::test]
async fn a_known_wrap_opens() {
    let wrapped = unhex(
        "01000000400000000200000001c8c9cacbcccdcecfd0d1d2d3d4d5d6d76465666768696a6b6c6d6e6f\
         f1e816914c1fd16cf14bbb4880443f0942788a77f8d2194c8e93722fb6acda84",
    );
    let kek = KeyBytes::from_slice(&(0..16).collect::<Vec<u8>>()).unwrap();
    let chain = chain("orders");
    let here = context(&chain, &kek);
    assert!(root("correct horse").unwrap(here, &wrapped).await.unwrap() == kek);

    let detail = wrong(&root("correct hors"), here, &wrapped).await;
    assert!(detail.contains("the passphrase is another one"), "{detail}");
    let newer = [&[2], &wrapped[1..]].concat();
    let detail = wrong(&root("correct horse"), here, &newer).await;
    assert_eq!(detail, "its format is 2, and this version reads 1");
}

#[tokio::test]
async fn the_default_cost_is_the_second_choice_of_rfc_9106() {
    let root = Root::new(secret("correct horse")).unwrap();
    let (chain, kek) = (chain("orders"), KeyBytes::random(Suite::Aes128Gcm).unwrap());
    let wrapped = root.wrap(context(&chain, &kek), &kek).await.unwrap();
    let Cost { memory, passes, lanes } = params_of(&wrapped).cost;
    assert_eq!((memory, passes, lanes), (65_536, 3, 1));
    assert!(root.unwrap(context(&chain, &kek), &wrapped).await.unwrap() == kek);
}

#[tokio::test]
async fn one_root_has_one_salt_across_processes() {
    let (chain, kek) = (chain("orders"), KeyBytes::random(Suite::Aes128Gcm).unwrap());
    let here = context(&chain, &kek);
    let first = root("p");
    let wrapped = first.wrap(here, &kek).await.unwrap();
    let again = first.wrap(here, &kek).await.unwrap();
    assert_eq!(params_of(&again), params_of(&wrapped));
    // Another process adopts the salt by opening a wrap,
    let second = root("p");
    second.unwrap(here, &wrapped).await.unwrap();
    let theirs = second.wrap(here, &kek).await.unwrap();
    assert_eq!(params_of(&theirs), params_of(&wrapped));
    assert_eq!(kept(&second), (true, 0), "with one derivation");
    // and generates one otherwise.
    let fresh = root("p").wrap(here, &kek).await.unwrap();
    assert_ne!(params_of(&fresh).salt, params_of(&wrapped).salt);
    // It opens both.
    assert!(second.unwrap(here, &fresh).await.unwrap() == kek);
    assert_eq!(kept(&second), (true, 1));
}

#[tokio::test]
async fn an_outdated_cost_is_read_and_not_adopted() {
    let (chain, kek) = (chain("orders"), KeyBytes::random(Suite::Aes128Gcm).unwrap());
    let here = context(&chain, &kek);
    let wrapped = root("p").wrap(here, &kek).await.unwrap();
    let newer = Root::with_cost(Arc::new(secret("p")), Cost { passes: 3, memory: 64, lanes: 1 });
    // Below the minimum, which is the lower one of the default and the root's own cost.
    assert!(newer.unwrap(here, &wrapped).await.is_ok());
    assert!(newer.told.load(Ordering::Relaxed), "the log has it");
    let own = newer.wrap(here, &kek).await.unwrap();
    assert_eq!(params_of(&own).cost.passes, 3);
    assert!(newer.is_current(&own) && !newer.is_current(&wrapped));
    // A higher cost causes no warning, but a new wrap would differ.
    let older = root("p");
    assert!(older.unwrap(here, &own).await.unwrap() == kek);
    assert!(!older.told.load(Ordering::Relaxed) && !older.is_current(&own));
}

#[tokio::test]
async fn wraps_with_another_salt_are_not_current() {
    let (chain, kek) = (chain("orders"), KeyBytes::random(Suite::Aes128Gcm).unwrap());
    let here = context(&chain, &kek);
    let (first, second) = (root("p"), root("p"));
    let (one, two) =
        (first.wrap(here, &kek).await.unwrap(), second.wrap(here, &kek).await.unwrap());
    assert!(first.is_current(&one) && !first.is_current(&two));
    assert!(second.is_current(&two) && !second.is_current(&one));
    // A root without a salt adopts that of the first wrap that it opens.
    let third = root("p");
    assert!(third.is_current(&one) && third.is_current(&two));
    third.unwrap(here, &two).await.unwrap();
    assert!(third.is_current(&two) && !third.is_current(&one));
    for nonsense in [&b""[..], &[FORMAT], &one[..20], &[&[2], &one[1..]].concat()] {
        assert!(!third.is_current(nonsense));
    }
}

#[tokio::test]
async fn the_cost_is_configured_within_bounds() {
    let with = |settings: &str| {
        let text = format!("name = 'main'\n{settings}");
        let config = toml::from_str::<Config>(&text).map_err(|error| error.to_string())?;
        let config = Config { passphrase: Some(Arc::new(secret("p"))), ..config };
        config.check()?;
        config.cost()
    };
    assert_eq!(with(""), Ok(Cost::DEFAULT));
    let least = Cost { memory: 19 << 10, passes: 2, lanes: 1 };
    assert_eq!(with("memory = '19MiB'\npasses = 2\nlanes = 1"), Ok(least));
    let most = Cost { memory: 256 << 10, passes: 10, lanes: 4 };
    assert_eq!(with("memory = '256MiB'\npasses = 10\nlanes = 4"), Ok(most));
    for (settings, error) in [
        ("memory = '18MiB'", "memory must be between 19MiB and 256MiB"),
        ("memory = '257MiB'", "memory must be between 19MiB and 256MiB"),
        ("memory = '99999999GiB'", "memory must be between 19MiB and 256MiB"),
        ("memory = 33554433", "in whole KiB"),
        ("passes = 1", "passes must be between 2 and 10"),
        ("passes = 11", "passes must be between 2 and 10"),
        ("lanes = 0", "lanes must be between 1 and 4"),
        ("lanes = 5", "lanes must be between 1 and 4"),
        ("memory = '64 megabytes'", "a size must be like"),
        ("passes = 'many'", "expected a whole number"),
        ("passes = -1", "expected a whole number"),
    ] {
        let found = with(settings).unwrap_err();
        assert!(found.contains(error), "{settings}: {found}");
    }
    // A wrap has the configured cost.
    let config = toml::from_str("name = 'main'\nmemory = '19MiB'\npasses = 2\nlanes = 2").unwrap();
    let config = Config { passphrase: Some(Arc::new(secret("p"))), ..config };
    let root = Root::open(&config).await.unwrap();
    let (chain, kek) = (chain("orders"), KeyBytes::random(Suite::Aes128Gcm).unwrap());
    let wrapped = root.wrap(context(&chain, &kek), &kek).await.unwrap();
    assert_eq!(params_of(&wrapped).cost, Cost { memory: 19 << 10, passes: 2, lanes: 2 });
    assert!(root.unwrap(context(&chain, &kek), &wrapped).await.unwrap() == kek);
}

#[tokio::test]
async fn a_wrap_that_asks_for_too_much_or_too_little_is_refused_before_it_is_derived() {
    let root = Root::new(secret("p")).unwrap();
    let (chain, kek) = (chain("orders"), KeyBytes::random(Suite::Aes128Gcm).unwrap());
    let default = Cost::DEFAULT;
    for cost in [
        Cost { memory: 10 << 20, ..default },
        Cost { memory: u32::MAX, ..default },
        Cost { memory: (19 << 10) - 1, ..default },
        Cost { passes: 11, ..default },
        Cost { passes: 1, ..default },
        Cost { lanes: 0, ..default },
        Cost { lanes: 5, ..default },
    ] {
        let head = [&[FORMAT], &KdfParams { cost, salt: [7; 16] }.to_bytes()[..]].concat();
        let wrapped = [&head[..], &[0; 44]].concat();
        let detail = wrong(&root, context(&chain, &kek), &wrapped).await;
        assert!(detail.contains("are accepted"), "{detail}");
    }
}

#[tokio::test]
async fn cached_keys_are_bounded_and_forged_wraps_evict_none() {
    let root = root("p");
    let (chain, kek) = (chain("orders"), KeyBytes::random(Suite::Aes128Gcm).unwrap());
    let here = context(&chain, &kek);
    let own = root.wrap(here, &kek).await.unwrap();
    for _ in 0..KEYS + 4 {
        let stranger = super::tests::root("p").wrap(here, &kek).await.unwrap();
        root.unwrap(here, &stranger).await.unwrap();
    }
    assert_eq!(kept(&root), (true, KEYS));
    let before: Vec<KdfParams> = root.keys().proven.iter().map(|(params, _)| *params).collect();
    for salt in 0..20 {
        let mut forged = own.clone();
        forged[13] = salt;
        forged[14] ^= 1;
        wrong(&root, here, &forged).await;
    }
    let after: Vec<KdfParams> = root.keys().proven.iter().map(|(params, _)| *params).collect();
    assert_eq!(before, after);
    assert!(root.keys().find(params_of(&own)).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_first_wraps_generate_one_salt() {
    let root = Arc::new(root("p"));
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let root = Arc::clone(&root);
            tokio::spawn(async move {
                let (chain, kek) = (chain("orders"), KeyBytes::random(Suite::Aes256Gcm).unwrap());
                let here = context(&chain, &kek);
                let wrapped = root.wrap(here, &kek).await.unwrap();
                assert!(root.unwrap(here, &wrapped).await.unwrap() == kek);
                params_of(&wrapped)
            })
        })
        .collect();
    let mut settings = Vec::new();
    for task in tasks {
        settings.push(task.await.unwrap());
    }
    assert!(settings.iter().all(|params| *params == settings[0]));
}

#[test]
fn a_caller_that_gives_up_does_not_let_the_next_derivation_start_early() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // The one thread for derivations is busy until the test releases it.
    let runtime = runtime.max_blocking_threads(1).build().unwrap();
    let (release, released) = std::sync::mpsc::channel::<()>();
    runtime.spawn_blocking(move || released.recv());
    runtime.block_on(async {
        let root = root("p");
        let turn = Arc::clone(&root.deriving).lock_owned().await;
        let params = KdfParams { cost: root.cost, salt: [1; SALT_LEN] };
        let mut derivation = Box::pin(root.derive(params, turn));
        let started = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(derivation.as_mut().poll(cx).is_pending())
        });
        assert!(started.await);
        drop(derivation);
        assert!(root.deriving.try_lock().is_err(), "the derivation is still queued");
        release.send(()).unwrap();
        let _turn = root.deriving.lock().await;
    });
}

fn config(file: Option<PathBuf>, passphrase: Option<&str>) -> Config {
    let passphrase = passphrase.map(|text| Arc::new(secret(text)));
    let config: Config = toml::from_str("name = 'main'").unwrap();
    Config { passphrase_file: file, passphrase, ..config }
}

#[tokio::test]
async fn the_passphrase_comes_from_a_file_or_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("passphrase");
    std::fs::write(&path, " correct horse \r\n").unwrap();
    let read = |config: &Config| config.read().map(|secret| secret.expose().to_vec());
    assert_eq!(read(&config(Some(path.clone()), None)).unwrap(), b" correct horse");
    assert_eq!(read(&config(None, Some("correct horse"))).unwrap(), b"correct horse");

    let error = read(&config(Some(path.clone()), Some("correct horse"))).unwrap_err();
    assert!(error.contains("set twice") && !error.contains("horse"), "{error}");
    assert!(read(&config(None, None)).unwrap_err().contains("passphrase_file"));
    assert!(read(&config(None, Some(""))).unwrap_err().contains("is empty"));
    std::fs::write(&path, " \n").unwrap();
    let error = Root::open(&config(Some(path.clone()), None)).await.err().unwrap();
    assert!(error.contains("is empty") && error.contains(&path.display().to_string()), "{error}");
    std::fs::remove_file(&path).unwrap();
    let error = Root::open(&config(Some(path.clone()), None)).await.err().unwrap();
    assert!(error.contains(&path.display().to_string()), "{error}");
    assert_eq!(Root::new(secret("")).err(), Some(Empty));
}

#[test]
fn the_passphrase_is_not_printed_and_not_read_from_toml() {
    let printed = format!("{:?}", config(None, Some("correct horse")));
    assert!(!printed.contains("horse") && printed.contains("main"), "{printed}");
    let parsed = toml::from_str::<Config>("name = 'main'\npassphrase = 'correct horse'");
    let error = parsed.unwrap_err().to_string();
    assert!(error.contains("unknown field `passphrase`"), "{error}");
}
