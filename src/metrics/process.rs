//! The `process_*` metrics that Prometheus' own client libraries have: CPU time, memory, file
//! descriptors and threads of this process, read from `/proc` at each scrape.
//!
//! Where there is no `/proc`, what is read there is left out.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// The unit of start times in `/proc` (`USER_HZ`): the same on all architectures that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Names and help texts, in the order of [`Process::read`].
const GAUGES: [(&str, &str); 6] = [
    ("process_start_time_seconds", "Start time of the process since the Unix epoch in seconds."),
    ("process_resident_memory_bytes", "Resident memory size in bytes."),
    ("process_virtual_memory_bytes", "Virtual memory size in bytes."),
    ("process_threads", "Number of OS threads in the process."),
    ("process_open_fds", "Number of open file descriptors."),
    ("process_max_fds", "Maximum number of open file descriptors."),
];
const CPU: (&str, &str) =
    ("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.");

/// Reads the metrics of this process.
pub(super) struct Process {
    descriptions: Vec<Desc>,
    start: Option<f64>,
}

impl Process {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let mut descriptions = Vec::new();
        for (name, help) in GAUGES.into_iter().chain([CPU]) {
            descriptions.extend(Gauge::new(name, help)?.desc().into_iter().cloned());
        }
        Ok(Self { descriptions, start: start() })
    }

    fn read(&self) -> [Option<f64>; GAUGES.len()] {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kilobytes = |key| number_after(&status, key).map(|kilobytes| kilobytes * 1024.0);
        // Without the one that reads the directory.
        let open = fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count().saturating_sub(1));
        let open = open.and_then(|count| u32::try_from(count).ok());
        [
            self.start,
            kilobytes("VmRSS:"),
            kilobytes("VmSize:"),
            number_after(&status, "Threads:"),
            open.map(f64::from),
            getrlimit(Resource::Nofile).current.map(as_f64),
        ]
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        for ((name, help), value) in GAUGES.into_iter().zip(self.read()) {
            // The names are valid: `new` has made them all.
            if let (Some(value), Ok(gauge)) = (value, Gauge::new(name, help)) {
                gauge.set(value);
                families.extend(gauge.collect());
            }
        }
        let (name, help) = CPU;
        if let Ok(counter) = Counter::new(name, help) {
            let used = clock_gettime(ClockId::ProcessCPUTime);
            let seconds = u64::try_from(used.tv_sec).unwrap_or(0);
            let nanoseconds = u64::try_from(used.tv_nsec).unwrap_or(0);
            counter.inc_by(as_f64(seconds) + as_f64(nanoseconds) / 1e9);
            families.extend(counter.collect());
        }
        families
    }
}

/// When this process was started, in seconds since the Unix epoch.
fn start() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the name of the program, in parentheses. It may hold spaces.
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks: f64 = rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()?;
    let booted = number_after(&fs::read_to_string("/proc/stat").ok()?, "btime")?;
    Some(booted + ticks / TICKS_PER_SECOND)
}

/// The number after `key` at the start of a line.
fn number_after(text: &str, key: &str) -> Option<f64> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix(key))?.split_ascii_whitespace().next()?.parse().ok()
}

/// Exact up to 2^53, which is more than any of these is.
#[expect(clippy::cast_precision_loss, reason = "no such number is as large")]
fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn what_the_process_uses_is_told_in_the_units_of_prometheus() {
        let process = Process::new().unwrap();
        let [start, resident, size, threads, open, most] = process.read().map(Option::unwrap);
        // After this line was written, and before the year 2100.
        assert!((1.7e9..4.2e9).contains(&start), "{start}");
        assert!((1e6..1e11).contains(&resident) && resident <= size, "{resident} {size}");
        assert!(threads >= 1.0, "{threads}");
        assert!(open >= 3.0 && open <= most, "{open} {most}");
        assert_eq!(process.collect().len(), process.desc().len());
    }
}
