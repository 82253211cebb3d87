//! Protects the memory of the process from other processes, and raises its limit of file
//! descriptors.
//!
//! Root can still read the memory, and so can a process of the same user that attached earlier.

use rustix::process::{Resource, Rlimit};

/// Disables core dumps, and with them ptrace, `/proc/PID/mem` and similar access, except for root.
/// `kms-proxy --debuggable`, or `KMS_PROXY_DEBUGGABLE=true`, skips this.
pub(super) fn hide() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // If the kernel refuses, the process runs without this protection.
    let limited = rustix::process::setrlimit(Resource::Core, none);
    if limited.and(no_dumps()).is_err() {
        super::stdio::eprint("core dumps could not be disabled");
    }
}

#[cfg(target_os = "linux")]
fn no_dumps() -> rustix::io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

#[cfg(not(target_os = "linux"))]
fn no_dumps() -> rustix::io::Result<()> {
    Ok(())
}

/// Raises the limit of file descriptors as far as the system allows: each connection needs one, and
/// the usual limit is 1,024. Returns the limit; `None` if unlimited.
pub(super) fn raise_descriptor_limit() -> Option<u64> {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    match rustix::process::setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.current,
        Err(_) => before,
    }
}
