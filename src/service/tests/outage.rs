//! What a status says of an outage: what works, until when, and what fails.

use super::*;
use crate::status::{Chain, Check as Shown, Status};
use crate::timestamp::rfc3339;

/// The status with its findings, as the page has it.
async fn status(service: &KeyService) -> Status {
    let scope = service.status_scope(|_| true, true, None, 100).await;
    let mut status = service.status(&scope);
    let readiness = service.readiness();
    let words = |health| match health {
        Health::Ok => "ok",
        Health::Degraded => "degraded",
        Health::Down => "unavailable",
    };
    status.status = words(readiness.health).to_owned();
    let check = |check: Check| Shown {
        name: check.name,
        status: words(check.health).to_owned(),
        detail: check.detail,
    };
    status.checks = readiness.checks.into_iter().map(check).collect();
    status.conclude();
    status
}

fn default_chain(status: &Status) -> &Chain {
    status.chains.iter().find(|chain| chain.chain == DEFAULT_CHAIN).unwrap()
}

/// No finding offers what can't work in an outage.
fn offers_nothing_that_can_not_work(status: &Status) {
    for finding in &status.findings {
        let text = format!("{} {} {:?}", finding.detail, finding.advice, finding.commands);
        for command in ["--force", "kek missing", "kms-proxy rotate"] {
            assert!(!text.contains(command), "{command}: {finding:#?}");
        }
        let is_of_chain = finding.about.starts_with("chain:");
        assert!(!is_of_chain || finding.link.ends_with("#kmsproxyencryptsrefused"), "{finding:?}");
    }
}

#[tokio::test]
async fn with_the_store_away_the_status_says_when_encrypts_and_decrypts_end() {
    let world = World::new(LOW).await;
    let (envelope, _) = world.encrypt().await.unwrap();
    assert_eq!(default_chain(&status(&world.service).await).outage, None);
    let confirmed = world.clock.unix_now();
    world.service.confirm_states();
    // No task reserves or reads meanwhile.
    world.service.stop().await;
    world.store.set_down(true);
    assert!(!world.service.is_store_back().await);

    let now = world.clock.unix_now();
    let at_first = status(&world.service).await;
    let outage = default_chain(&at_first).outage.clone().unwrap();
    let left = world.service.uses_left();
    assert!(left > 0, "{outage:?}");
    assert_eq!((&*outage.causes, outage.encrypts_left), (&["store".to_owned()][..], Some(left)));
    assert_eq!(outage.encrypts_until, Some(rfc3339(now + 60)));
    let grace = Config::default().cache.offline_grace.as_secs();
    let end = rfc3339(confirmed + grace);
    let until = Some(end.clone());
    assert_eq!(at_first.store.as_ref().unwrap().decrypts_until, until);
    assert_eq!((&outage.decrypts_until, outage.holds_primary), (&until, true));
    let effect = &at_first.findings[0].effect;
    for part in [&format!("{left} in default"), &rfc3339(now + 60), &end] {
        assert!(effect.contains(&**part), "{part}: {effect}");
    }
    assert!(at_first.summary.starts_with("The store has been away since "), "{}", at_first.summary);
    offers_nothing_that_can_not_work(&at_first);
    assert!(world.encrypt().await.is_ok() && world.decrypt(&envelope).await.is_ok());

    world.clock.advance(Duration::from_secs(61));
    let later = status(&world.service).await;
    let outage = default_chain(&later).outage.clone().unwrap();
    assert_eq!((outage.encrypts_left, outage.encrypts_until), (Some(0), None));
    assert!(later.findings[0].effect.starts_with("Encrypts fail now. Decrypts under KEKs in"));
    assert!(world.decrypt(&envelope).await.is_ok());

    world.clock.advance(Duration::from_secs(grace));
    let last = status(&world.service).await;
    let effect = &last.findings[0].effect;
    assert!(effect.contains(&format!("Decrypts have failed since {end}")), "{effect}");
    assert_eq!(kind(world.decrypt(&envelope).await), Kind::StoreUnavailable);

    world.store.set_down(false);
    assert!(world.service.is_store_back().await);
    let back = status(&world.service).await;
    assert_eq!(default_chain(&back).outage, None);
    assert_eq!(back.store.unwrap().decrypts_until, None);
}

#[tokio::test]
async fn with_the_root_away_the_status_leads_with_the_root_and_offers_no_force() {
    let world = World::new(LOW).await;
    let (envelope, id) = world.encrypt().await.unwrap();
    let checked = world.clock.unix_now();
    world.root.away.store(true, SeqCst);
    while world.encrypt().await.is_ok() {}
    let status_now = status(&world.service).await;
    let outage = default_chain(&status_now).outage.clone().unwrap();
    assert_eq!(outage.causes, ["root:main"]);
    assert_eq!(outage.encrypts_left, Some(0), "all uses are reserved and spent");
    let cache = Config::default().cache;
    let until = rfc3339(checked + (cache.kek_max_age + cache.offline_grace).as_secs());
    assert_eq!(outage.decrypts_until, Some(until.clone()));
    let first = &status_now.findings[0];
    assert_eq!(first.about, "root:main");
    assert!(first.effect.contains("Encrypts fail now. ") && first.effect.contains(&until));
    assert!(status_now.summary.starts_with("No root answers: root main has been away since "));
    assert!(status_now.findings.iter().any(|it| it.about == "chain:default"), "{status_now:#?}");
    offers_nothing_that_can_not_work(&status_now);
    assert!(world.decrypt(&envelope).await.is_ok());

    // A process that starts in the outage has no KEK in memory.
    let world = world.restarted().await;
    assert_eq!(kind(world.encrypt().await), Kind::RootUnavailable);
    let cold = status(&world.service).await;
    let outage = default_chain(&cold).outage.clone().unwrap();
    assert_eq!((outage.encrypts_left, outage.holds_primary), (Some(0), false));
    assert_eq!(cold.status, "unavailable");
    let first = (cold.findings[0].level, &*cold.findings[0].about);
    assert_eq!(first, (crate::status::Level::Unavailable, "root:main"));
    offers_nothing_that_can_not_work(&cold);
    let error = world.service.rotate(None).await.unwrap_err().for_operators();
    assert!(error.contains(&id.to_string()) && !error.contains("--force"), "{error}");
}

#[tokio::test]
async fn a_root_beside_another_one_that_answers_stops_no_chain() {
    let (clock, store): (Arc<ManualClock>, Arc<memory::Store>) = Default::default();
    let [a, b] = [0, 1].map(|key| Arc::new(TestRoot::with_key(key)));
    let service = start(Arc::clone(&store) as _, &[("a", &a), ("b", &b)], &clock).await;
    service.encrypt(None, b"hello"[..].into(), b"aad").await.unwrap();
    a.away.store(true, SeqCst);
    service.rotate(None).await.unwrap();
    let status = status(&service).await;
    assert_eq!(default_chain(&status).outage, None);
    let of_root = status.findings.iter().find(|it| it.about == "root:a").unwrap();
    assert!(of_root.effect.contains("The other roots open the rest"), "{of_root:?}");
    assert!(status.summary.starts_with("Root a has been away since "), "{}", status.summary);
}
