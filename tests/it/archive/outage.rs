//! Archives that do not answer: the primary continues to its limit, encrypts wait or continue as the
//! policy says, and all is archived afterwards without a restart.

use reqwest::Method;
use serde_json::json;

use super::bucket::S3;
use super::{HELLO, directory, root};
use crate::support::proxy::{Mode, Proxy};
use crate::support::{Sealed, Service, Setup, decrypt_all, until};

const MAX_USES: u64 = 200;
const ROTATE_AFTER: u64 = 100;

/// The bucket, and a line to it that can break.
struct Bucket {
    s3: S3,
    line: Proxy,
}

impl Bucket {
    async fn start() -> Self {
        let s3 = S3::start().await;
        let line = Proxy::start(s3.port()).await;
        Self { s3, line }
    }

    /// A service with low limits and the bucket as the archive of this index.
    fn archive(&self, setup: Setup, index: usize) -> Setup {
        let setup = self.s3.archive_at(setup, index, &self.line.url());
        let setup = setup.set(&format!("ARCHIVE__{index}__TIMEOUT"), "2s");
        setup.set("CHAIN__MAX_USES", MAX_USES).set("CHAIN__ROTATE_AFTER_USES", ROTATE_AFTER)
    }
}

fn setup() -> Setup {
    let setup = Setup::new();
    let key = setup.file("root.key");
    root(setup, &key)
}

/// The value of a metric of an archive.
async fn metric(service: &Service, name: &str, archive: &str) -> u64 {
    let line = format!("kms_proxy_archive_{name}{{archive=\"{archive}\"}} ");
    let metrics = service.metrics().await;
    let value = metrics.lines().find_map(|it| it.strip_prefix(&line));
    value.unwrap_or_else(|| panic!("{line} is missing")).parse().unwrap()
}

async fn unarchived(service: &Service) -> u64 {
    let metrics = service.metrics().await;
    let name = "kms_proxy_unarchived_promotions_total ";
    metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
}

/// The status and the detail of an archive in `/readyz`.
async fn check(service: &Service, archive: &str) -> (String, String) {
    let (_, readiness) = service.get("/readyz").await;
    let name = format!("archive:{archive}");
    let checks = readiness["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == *name).unwrap();
    let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("detail"))
}

/// Waits until an archive holds everything.
async fn whole(service: &Service, archive: &str) {
    until("an archive that holds everything", async || {
        let metrics =
            (metric(service, "up", archive).await, metric(service, "pending", archive).await);
        (metrics == (1, 0) && check(service, archive).await.0 == "ok").then_some(())
    })
    .await;
}

/// Encrypts until that fails, at most `most` times; the envelopes and the code of the failure.
async fn encrypt_until_refused(service: &Service, most: u64) -> (Vec<Sealed>, Option<String>) {
    let mut made = Vec::new();
    while (made.len() as u64) < most {
        match service.try_encrypt("default", HELLO).await.unwrap() {
            Ok(sealed) => made.push(sealed),
            Err((status, error)) => {
                assert_eq!(status, 503, "{error}");
                return (made, error["code"].as_str().map(str::to_owned));
            }
        }
    }
    (made, None)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_archive_is_away_the_old_primary_continues_to_its_limit_and_then_encrypts_wait() {
    for mode in [Mode::Cut, Mode::Frozen] {
        let bucket = Bucket::start().await;
        let service = bucket.archive(setup(), 0).start().await;
        let (mut all, _) = encrypt_until_refused(&service, ROTATE_AFTER / 4).await;
        whole(&service, "bucket").await;
        bucket.line.set(mode);
        // For longer than the budget lasts: two KEKs, if a standby was archived already.
        let (made, code) = encrypt_until_refused(&service, 3 * MAX_USES).await;
        assert_eq!(code.as_deref(), Some("archive_unavailable"), "{mode:?}: {}", made.len());
        all.extend(made);
        let last = all.last().unwrap().kek_id();
        let uses = all.iter().filter(|sealed| sealed.kek_id() == last).count() as u64;
        assert!(uses > ROTATE_AFTER && uses <= MAX_USES, "{mode:?}: {uses} under the last KEK");
        let body = json!({"plaintext": HELLO});
        let request = service.request(Method::POST, "/v1/encrypt").json(&body);
        let refused = request.send().await.unwrap();
        assert_eq!(refused.status(), 503);
        assert!(refused.headers().contains_key("retry-after"), "{refused:?}");
        assert_eq!(metric(&service, "up", "bucket").await, 0);
        assert!(metric(&service, "pending", "bucket").await > 0);
        let (status, detail) = check(&service, "bucket").await;
        assert_eq!(status, "degraded", "{detail}");
        assert_eq!(service.get("/readyz").await.0, 200, "it decrypts");
        decrypt_all(&service, &all).await;

        bucket.line.set(Mode::Open);
        until("an encrypt", async || service.try_encrypt("default", HELLO).await?.ok()).await;
        let new = service.encrypt("default", HELLO).await;
        assert_ne!(new.kek_id(), last);
        whole(&service, "bucket").await;
        assert_eq!(unarchived(&service).await, 0);
        decrypt_all(&service, &all).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_on_failure_continue_keks_encrypt_before_they_are_archived_and_are_counted() {
    let bucket = Bucket::start().await;
    let setup = bucket.archive(setup(), 0).set("ARCHIVE_POLICY__ON_FAILURE", "continue");
    let service = setup.start().await;
    service.encrypt("default", HELLO).await;
    whole(&service, "bucket").await;
    assert_eq!(unarchived(&service).await, 0);
    bucket.line.set(Mode::Cut);
    let (made, code) = encrypt_until_refused(&service, 3 * MAX_USES).await;
    assert_eq!(code, None, "{} envelopes", made.len());
    assert!(unarchived(&service).await > 0);
    service.logged("although the required archives do not hold it").await;
    assert_eq!(metric(&service, "up", "bucket").await, 0);
    assert!(metric(&service, "pending", "bucket").await > 0);
    bucket.line.set(Mode::Open);
    whole(&service, "bucket").await;
    let data = setup.data();
    service.kill();
    std::fs::remove_dir_all(data).unwrap();
    let service = setup.start().await;
    decrypt_all(&service, &made).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_require_any_one_of_two_archives_is_enough() {
    let bucket = Bucket::start().await;
    let setup = setup();
    let nas = setup.file("archive");
    let setup = bucket.archive(directory(setup, 0, &nas), 1).set("ARCHIVE_POLICY__REQUIRE", "any");
    let service = setup.start().await;
    bucket.line.set(Mode::Frozen);
    let (made, code) = encrypt_until_refused(&service, 3 * MAX_USES).await;
    assert_eq!(code, None, "{} envelopes", made.len());
    assert_eq!(unarchived(&service).await, 0, "one archive has each of them");
    until("the end of a call without an answer", async || {
        (metric(&service, "up", "bucket").await == 0).then_some(())
    })
    .await;
    assert!(metric(&service, "pending", "bucket").await > 0);
    whole(&service, "nas").await;

    // Now the other one alone.
    bucket.line.set(Mode::Open);
    whole(&service, "bucket").await;
    let away = setup.file("away");
    std::fs::rename(&nas, &away).unwrap();
    let (more, code) = encrypt_until_refused(&service, 3 * MAX_USES).await;
    assert_eq!((code, unarchived(&service).await), (None, 0));
    // And none.
    bucket.line.set(Mode::Cut);
    let (last, code) = encrypt_until_refused(&service, 3 * MAX_USES).await;
    assert_eq!(code.as_deref(), Some("archive_unavailable"));
    decrypt_all(&service, &[made, more, last].concat()).await;
    std::fs::rename(&away, &nas).unwrap();
    until("an encrypt", async || service.try_encrypt("default", HELLO).await?.ok()).await;
    whole(&service, "nas").await;
}
