//! Calls that share a stretch: what they spend, return and count.

use crate::keychain::message::Plaintext;
use crate::metrics::Operation;
use crate::service::Calls;

use super::*;

const LARGE: Limits =
    Limits { rotate_after_uses: 100_000, max_uses: 200_000, rotate_after_age: 86_400 };

/// A service that reserves nothing any more, and the uses that it has.
async fn stopped(limits: Limits) -> (World, u64) {
    let world = World::new(limits).await;
    world.encrypt().await.unwrap();
    world.service.stop().await;
    let left = world.service.uses_left();
    assert!(left >= 8, "{left}");
    (world, left)
}

async fn encrypt(calls: &mut Calls<'_>, aad: &[u8]) -> Result<Vec<u8>, Error> {
    let made = calls.encrypt(Plaintext::from(b"hello"), aad).await?;
    Ok(made.envelope.as_slice().to_vec())
}

#[tokio::test]
async fn a_stretch_returns_what_it_does_not_spend_and_counts_when_it_ends() {
    let (world, left) = stopped(LARGE).await;
    let service = &world.service;
    let counted = || service.chain_named(DEFAULT_CHAIN).metrics.succeeded(Operation::Encrypt);
    let before = counted();
    let mut calls = service.on(None);
    calls.expect(usize::try_from(left / 4).unwrap());
    let envelopes =
        [encrypt(&mut calls, b"aad").await.unwrap(), encrypt(&mut calls, b"aad").await.unwrap()];
    assert_eq!(service.uses_left(), left - left / 4, "the others are reserved for the stretch");
    assert_eq!(counted(), before);
    // A use is lost with a call that fails.
    let too_long = vec![0; crate::envelope::MAX_AAD_LEN + 1];
    assert_eq!(kind(encrypt(&mut calls, &too_long).await), Kind::InvalidRequest);
    calls.settle();
    assert_eq!((service.uses_left(), counted()), (left - 3, before + 2));
    encrypt(&mut calls, b"aad").await.unwrap();
    drop(calls);
    assert_eq!((service.uses_left(), counted()), (left - 4, before + 3), "a request was aborted");
    for envelope in envelopes {
        assert_eq!(world.decrypt(&envelope).await.unwrap().as_slice(), b"hello");
    }
}

#[tokio::test]
async fn a_stretch_spends_every_use_and_not_one_more() {
    let (world, left) = stopped(LOW).await;
    let mut calls = world.service.on(None);
    calls.expect(usize::try_from(left).unwrap());
    for used in 0..left {
        assert_eq!(world.service.uses_left(), left - used, "few are taken one by one");
        encrypt(&mut calls, b"aad").await.unwrap();
    }
    world.store.fail_next([Fault::NotSent]);
    let (refused, ()) =
        tokio::join!(biased; encrypt(&mut calls, b"aad"), world.service.run_reserver());
    assert_eq!(kind(refused), Kind::StoreUnavailable);
}

#[tokio::test]
async fn uses_that_became_void_seal_nothing() {
    let (world, left) = stopped(LARGE).await;
    let mut calls = world.service.on(None);
    calls.expect(usize::try_from(left / 4).unwrap());
    encrypt(&mut calls, b"aad").await.unwrap();
    world.clock.advance(Duration::from_secs(61));
    assert_eq!(kind(encrypt(&mut calls, b"aad").await), Kind::KekExhausted);
    let (made, ()) =
        tokio::join!(biased; encrypt(&mut calls, b"aad"), world.service.run_reserver());
    assert_eq!(world.decrypt(&made.unwrap()).await.unwrap().as_slice(), b"hello");
}

#[tokio::test]
async fn a_stretch_that_is_given_up_while_a_call_waits_counts_those_before() {
    let (world, left) = stopped(LOW).await;
    let counted = || world.service.chain_named(DEFAULT_CHAIN).metrics.succeeded(Operation::Encrypt);
    let before = counted();
    let mut calls = world.service.on(None);
    calls.expect(usize::try_from(left + 1).unwrap());
    for _ in 0..left {
        encrypt(&mut calls, b"aad").await.unwrap();
    }
    tokio::select! {
        biased;
        _ = encrypt(&mut calls, b"aad") => panic!("no use is left"),
        () = tokio::task::yield_now() => {}
    }
    drop(calls);
    assert_eq!(counted(), before + left);
}

#[tokio::test]
async fn a_chain_that_is_not_there_fails_each_call() {
    let world = World::new(LOW).await;
    let mut calls = world.service.on(Some("other"));
    calls.expect(64);
    for _ in 0..2 {
        assert_eq!(kind(encrypt(&mut calls, b"aad").await), Kind::UnknownChain);
    }
}
