//! Ends the run when a test does not end. It names the test and the processes that the test started,
//! so the log of a run tells what the test waited for.
//!
//! A test that waits has its own deadline. This catches a wait without one.

use std::collections::BTreeMap;
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

/// No test takes a third of this on a slow machine.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// The threads that run a test, by the name of the test.
static RUNNING: Mutex<BTreeMap<String, Instant>> = Mutex::new(BTreeMap::new());

thread_local! {
    static TEST: Test = Test::begin();
}

/// A test that is running. It ends with its thread.
struct Test(String);

impl Test {
    fn begin() -> Self {
        static WATCHER: Once = Once::new();
        WATCHER.call_once(|| _ = std::thread::spawn(watch_all));
        let name = std::thread::current().name().unwrap_or("a thread without a name").to_owned();
        RUNNING.lock().unwrap().insert(name.clone(), Instant::now());
        Self(name)
    }
}

impl Drop for Test {
    fn drop(&mut self) {
        RUNNING.lock().unwrap().remove(&self.0);
    }
}

/// Watches the test that calls this.
pub(crate) fn watch() {
    // A thread that is ending has no test any more.
    _ = TEST.try_with(|_| ());
}

fn watch_all() {
    loop {
        std::thread::sleep(Duration::from_secs(5));
        let running = RUNNING.lock().unwrap();
        let late = running.iter().filter(|(_, began)| began.elapsed() > LIMIT);
        let late: Vec<_> = late.map(|(name, _)| name.as_str()).collect();
        if !late.is_empty() {
            super::tell(&format!("no end after {LIMIT:?}: {}", late.join(", ")));
            super::tell(&format!("the processes of all running tests:\n{}", children()));
            std::process::exit(1);
        }
    }
}

/// The command, the state and the kernel function of each process that this one started.
fn children() -> String {
    let parent = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = processes.filter_map(|process| {
        let read = |name: &str| std::fs::read_to_string(process.path().join(name)).ok();
        let stat = read("stat")?;
        // The name of the program, in parentheses, may have spaces.
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let (state, parent_of_it) = (fields.next()?, fields.next()?);
        let command = read("cmdline")?.replace('\0', " ");
        let waits = read("wchan").unwrap_or_default();
        (parent_of_it == parent).then(|| format!("{state} {waits} {command}\n"))
    });
    lines.collect()
}
