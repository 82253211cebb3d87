//! The simulated root: it answers after a time, refuses calls beyond its quota, and counts them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::sleep;

use super::super::simulation::Rng;
use super::cluster::{Cluster, Counts};
use crate::root::{self, Context, RootKey};
use crate::secret::KeyBytes;

/// Calls that the root answers in a second: the default quota of AWS KMS in many regions.
const ROOT_CALLS_PER_SECOND: u64 = 10_000;
/// How long a call of the root takes.
const ROOT_CALL: Duration = Duration::from_millis(30);
/// How often the client of the root tries again when it is throttled.
const ROOT_TRIES: u32 = 3;

/// The root that all replicas have.
pub(super) struct Kms {
    cluster: Arc<Cluster>,
    rng: Rng,
    /// The current second, and its calls.
    load: Mutex<(usize, u64)>,
}

impl Kms {
    pub(super) fn new(cluster: &Arc<Cluster>, rng: Rng) -> Arc<Self> {
        Arc::new(Self { cluster: Arc::clone(cluster), rng, load: Mutex::default() })
    }

    async fn call(&self, count: fn(&mut Counts)) -> Result<(), root::Error> {
        for attempt in 1..=ROOT_TRIES {
            sleep(ROOT_CALL).await;
            let is_throttled = {
                let mut load = self.load.lock().unwrap();
                let second = self.cluster.second();
                if load.0 != second {
                    *load = (second, 0);
                }
                load.1 += 1;
                load.1 > ROOT_CALLS_PER_SECOND
            };
            self.cluster.count(|counts| {
                count(counts);
                counts.throttled += u64::from(is_throttled);
            });
            if !is_throttled {
                return Ok(());
            }
            sleep(self.rng.up_to(Duration::from_millis(500) * 2_u32.pow(attempt))).await;
        }
        Err(root::Error::Away("throttled".to_owned()))
    }
}

#[async_trait]
impl RootKey for Kms {
    async fn wrap(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, root::Error> {
        self.call(|counts| counts.wraps += 1).await?;
        Ok([&context.aad()[..], kek.expose()].concat())
    }

    async fn unwrap(&self, context: Context<'_>, wrap: &[u8]) -> Result<KeyBytes, root::Error> {
        self.call(|counts| counts.unwraps += 1).await?;
        let kek = wrap.strip_prefix(&*context.aad()).and_then(KeyBytes::from_slice);
        kek.ok_or_else(|| root::Error::Wrong("another context".to_owned()))
    }

    fn kind(&self) -> &'static str {
        "simulated"
    }
}
