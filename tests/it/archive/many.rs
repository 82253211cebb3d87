//! Archives of many KEKs: those that the tests generate, and the time and the memory of a recovery.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use kms_proxy::archive::object;
use kms_proxy::id::{ChainName, KekId, Suite};
use kms_proxy::store::record::{Kek, Limits, State, Wrap};

use super::{directory, root};
use crate::support::random::variable;
use crate::support::{Setup, tell};

/// The KEKs of `make test`; `make soak` has 100,000. Mostly the disk decides how long they take.
const KEKS: u64 = 20_000;

/// The memory of a recovery of any number of KEKs, in kB. The ids of all KEKs are in it.
const MOST_KB: u64 = 200_000;

pub(super) fn chain() -> ChainName {
    ChainName::new("default").unwrap()
}

/// Objects that look like those of real KEKs, whose wraps are never opened, and their keys. The
/// first is that of the chain.
pub(super) fn objects(count: u64) -> impl Iterator<Item = (String, Vec<u8>)> {
    let chain = chain();
    let (suite, limits) = (Suite::Aes128Gcm, Limits::default());
    let settings = object::Chain { suite, limits, inline: false };
    let first = (object::chain_key(&chain), object::encode_chain(&chain, &settings).unwrap());
    let of_keks = (0..count).map(move |number| {
        let id = KekId::of_key(&u128::from(number).to_be_bytes());
        let kek = Kek {
            suite,
            state: State::Primary,
            created_at: 1_700_000_000 + number,
            promoted_at: None,
            disabled_at: None,
            exposed: false,
            wraps: vec![Wrap { root: "main".to_owned(), bytes: vec![7; 45] }],
        };
        (object::kek_key(&chain, id), object::encode_kek(&chain, id, &kek).unwrap())
    });
    std::iter::once(first).chain(of_keks)
}

/// Writes generated objects to the archive in `path`, as files and without a sync of each.
pub(crate) fn fill(path: &Path, count: u64) {
    std::fs::create_dir_all(path.join(object::chain_prefix(&chain()))).unwrap();
    for (key, bytes) in objects(count) {
        std::fs::write(path.join(key), bytes).unwrap();
    }
}

/// Waits until a process ends: what it printed, and the most memory that it had, in kB.
pub(crate) fn measure(mut child: Child) -> (String, u64) {
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kb = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        most = most.max(kb.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (String::from_utf8(output.stdout).unwrap(), most)
}

#[test]
fn many_keks_are_recovered_in_bounded_memory() {
    let keks = variable("KMS_PROXY_RECOVER_KEKS").unwrap_or(KEKS);
    let setup = Setup::new();
    let (key, archive) = (setup.file("root.key"), setup.file("archive"));
    let setup = directory(root(setup, &key), 0, &archive);
    let setup = setup.clone().set("STORE__PATH", setup.data().display());
    fill(&archive, keks);
    for (what, restored, same) in [("recovered", keks, 0), ("recovered again", 0, keks)] {
        let began = Instant::now();
        let mut command = setup.tool(&["store", "recover"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (said, memory) = measure(child);
        let expected = format!("{restored} restored, {same} the same");
        assert!(said.replace(',', "").contains(&expected.replace(',', "")), "{said}");
        tell(&format!(
            "{keks} KEKs are {what} in {:?} with {memory} kB of memory",
            began.elapsed()
        ));
        assert!(memory < MOST_KB, "{memory} kB");
    }
}
