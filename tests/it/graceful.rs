//! How a replica stops: readiness first, then the connections, and no call fails. A rolling
//! restart of three replicas under load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;

use crate::support::etcd::Etcd;
use crate::support::pki::{Pki, client};
use crate::support::ports::free_port;
use crate::support::{Sealed, Service, Setup, decrypt_all, tell, until};

#[tokio::test]
async fn readiness_goes_first_and_requests_are_taken_until_the_delay_is_over() {
    let service = Setup::new().set("SERVER__DRAIN_DELAY", "10m").start().await;
    let sealed = service.encrypt("default", "aGVsbG8=").await;
    service.signal(Signal::TERM);
    until("a replica that is not ready", async || {
        (service.get("/readyz").await.0 == 503).then_some(())
    })
    .await;
    let request = service.request(Method::POST, "/v1/encrypt").json(&json!({"plaintext": ""}));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["connection"], "close", "the next request goes elsewhere");
    decrypt_all(&service, &[sealed]).await;
    assert!(service.is_listening().await);
    service.signal(Signal::TERM);
    service.logged("the shutdown has already begun").await;
    service.encrypt("default", "aGVsbG8=").await;
    assert!(service.is_listening().await, "a second SIGTERM does not shorten the delay");
    // Two signals that wait at the same time are one.
    service.signal(Signal::INT);
    service.logged("\"signal\":\"SIGINT\"").await;
    service.signal(Signal::INT);
    let (code, log) = service.ended().await;
    assert!(code == Some(1) && log.contains("ended by a second SIGINT"), "{code:?} {log}");

    let service = Setup::new().set("SERVER__DRAIN_DELAY", "1s").start().await;
    let answer = service.request(Method::GET, "/healthz").send().await.unwrap();
    assert!(answer.headers().get("connection").is_none());
    let log = service.stop().await;
    assert!(log.contains("finishing requests in flight"), "{log}");
}

#[tokio::test]
async fn sighup_ends_nothing_where_there_is_nothing_to_read_again() {
    let service = Setup::new().start().await;
    service.signal(Signal::HUP);
    service.logged("SIGHUP: reading files again").await;
    service.encrypt("default", "aGVsbG8=").await;
    service.stop().await;
}

const REPLICAS: usize = 3;

/// How long a replica serves after it has become unready.
const DRAIN_DELAY: Duration = Duration::from_secs(3);

/// What takes longer may be over after the replica has left.
const LATE: Duration = Duration::from_secs(1);

/// What a load balancer knows, and what its callers did.
struct Fleet {
    urls: Vec<String>,
    ready: Vec<AtomicBool>,
    /// When the last probe that has ended began, for each replica.
    probed: Vec<Mutex<Instant>>,
    /// Whether the probe that saw a replica become unready was late.
    late: Vec<AtomicBool>,
    is_running: AtomicBool,
    done: AtomicU64,
    /// Calls that failed because the probes were late.
    blind: AtomicU64,
    sealed: Mutex<Vec<Sealed>>,
}

impl Fleet {
    /// Looks at a replica as a load balancer does.
    async fn probe(self: Arc<Self>, number: usize, client: reqwest::Client) {
        let client = client.get(format!("{}/readyz", self.urls[number]));
        while self.is_running.load(Ordering::Relaxed) {
            let began = Instant::now();
            let answer = client.try_clone().unwrap().send().await;
            let ready = answer.is_ok_and(|answer| answer.status() == 200);
            let before = std::mem::replace(&mut *self.probed[number].lock().unwrap(), began);
            if self.ready[number].load(Ordering::Relaxed) && !ready {
                self.late[number].store(before.elapsed() > LATE, Ordering::Relaxed);
            }
            self.ready[number].store(ready, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether a replica may have left before a probe could see it.
    fn is_probed_late(&self, number: usize) -> bool {
        let is_old = self.probed[number].lock().unwrap().elapsed() > LATE;
        is_old || self.late[number].load(Ordering::Relaxed)
    }

    /// Calls replicas that are ready in turns; no call may fail.
    async fn call(self: Arc<Self>, number: usize, client: reqwest::Client) {
        let mut turn = number;
        while self.is_running.load(Ordering::Relaxed) {
            turn += 1;
            let ready = (0..REPLICAS).map(|at| (at + turn) % REPLICAS);
            let mut ready = ready.filter(|at| self.ready[*at].load(Ordering::Relaxed));
            let Some(replica) = ready.next() else {
                // A probe of a loaded machine failed.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let chosen = Instant::now();
            let plaintext = base64_simd::STANDARD.encode_to_string(turn.to_be_bytes());
            let url = format!("{}/v1/encrypt", self.urls[replica]);
            let request = client.post(url).json(&json!({"plaintext": plaintext}));
            let answer = match request.send().await {
                Ok(answer) => answer,
                // The replica left while this process stood still: no load balancer could know.
                Err(_) if chosen.elapsed() > LATE || self.is_probed_late(replica) => {
                    self.blind.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Err(error) => panic!("{error:?}"),
            };
            assert_eq!(answer.status(), 200);
            let answer: serde_json::Value = answer.json().await.expect("a whole answer");
            let ciphertext = answer["ciphertext"].as_str().unwrap().to_owned();
            if turn.is_multiple_of(20) {
                let chain = "default".to_owned();
                self.sealed.lock().unwrap().push(Sealed { chain, plaintext, ciphertext });
            }
            self.done.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn more(&self, count: u64) {
        let before = self.done.load(Ordering::Relaxed);
        let came = async || (self.done.load(Ordering::Relaxed) >= before + count).then_some(());
        until("more calls", came).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_three_replicas_fails_no_request() {
    let etcd = Etcd::start().await;
    let setup = Setup::new();
    let pki = Pki::new(setup.file("pki"));
    let (cert, key) = pki.server(&["127.0.0.1"]);
    let setups: [Setup; REPLICAS] = std::array::from_fn(|_| {
        Setup::new()
            .on_etcd(&etcd)
            .set("ROOT__0__KIND", "local")
            .set("ROOT__0__NAME", "main")
            .set("ROOT__0__KEY_FILE", setup.file("root.key").display())
            .set("SERVER__TLS__CERT", cert.display())
            .set("SERVER__TLS__KEY", key.display())
            .set("SERVER__DRAIN_DELAY", format!("{}s", DRAIN_DELAY.as_secs()))
    });
    let trusting = || client(&pki.ca(), None).timeout(Duration::from_secs(180));
    let mut replicas = Vec::new();
    for setup in &setups {
        let mut service = Service::spawn(setup.command_at(&format!("127.0.0.1:{}", free_port())));
        service.ready().await;
        service.call_with(trusting().build().unwrap());
        replicas.push(service);
    }
    let fleet = Arc::new(Fleet {
        urls: replicas.iter().map(Service::url).collect(),
        ready: (0..REPLICAS).map(|_| AtomicBool::new(true)).collect(),
        probed: (0..REPLICAS).map(|_| Mutex::new(Instant::now())).collect(),
        late: (0..REPLICAS).map(|_| AtomicBool::new(false)).collect(),
        is_running: AtomicBool::new(true),
        done: AtomicU64::new(0),
        blind: AtomicU64::new(0),
        sealed: Mutex::default(),
    });
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..REPLICAS {
        // Each probe on a new connection, as kubelets do.
        let client = trusting().http1_only().pool_max_idle_per_host(0);
        tasks.spawn(Arc::clone(&fleet).probe(number, client.build().unwrap()));
    }
    for number in 0..8 {
        // Half of them keep connections of HTTP/1.1, half of HTTP/2.
        let client = if number % 2 == 0 { trusting().http1_only() } else { trusting() };
        tasks.spawn(Arc::clone(&fleet).call(number, client.build().unwrap()));
    }
    fleet.more(200).await;
    // A restart during which the probes stood still is repeated.
    let mut restarts = (0..REPLICAS).collect::<Vec<_>>();
    let mut most = 4 * REPLICAS;
    while let Some(number) = restarts.pop() {
        let (setup, blind) = (&setups[number], fleet.blind.load(Ordering::Relaxed));
        let old = replicas.remove(number);
        let address = old.address().to_string();
        old.stop().await;
        let mut new = Service::spawn(setup.command_at(&address));
        new.ready().await;
        new.call_with(trusting().build().unwrap());
        replicas.insert(number, new);
        until("it is seen to be ready", async || {
            fleet.ready[number].load(Ordering::Relaxed).then_some(())
        })
        .await;
        fleet.more(100).await;
        if fleet.blind.load(Ordering::Relaxed) > blind {
            restarts.push(number);
        }
        most -= 1;
        assert!(most > 0, "the probes are always late");
    }
    fleet.is_running.store(false, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no call failed");
    }
    tell(&format!("{} calls through three restarts", fleet.done.load(Ordering::Relaxed)));
    let sealed = std::mem::take(&mut *fleet.sealed.lock().unwrap());
    assert!(!sealed.is_empty());
    for replica in &replicas {
        decrypt_all(replica, &sealed).await;
    }
}
