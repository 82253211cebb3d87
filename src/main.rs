//! `kms-proxy`: the service and its command line.

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use zeroizing_alloc::ZeroAlloc;

mod cli;

/// Wipes memory when it is freed, including the buffers of the HTTP and TLS libraries. mimalloc is
/// built within seconds, and returns memory after a burst. The library leaves the choice of an
/// allocator to its users.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<MiMalloc> = ZeroAlloc(MiMalloc);

fn main() -> ExitCode {
    kms_proxy::telemetry::hush_panics();
    cli::run(cli::Cli::parse())
}
