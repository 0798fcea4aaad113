//! Whether a request fits into memory, asked before anything is allocated.

use crate::failure::Failure;
use crate::table::bytes;

/// Bytes that the system could give this process now; `None` where it does not tell.
pub(crate) fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Refuses what would not fit. `what` names the request, `remedy` what else can be done.
pub(crate) fn check(what: &str, needed: f64, remedy: &str) -> Result<(), Failure> {
    match available() {
        Some(available) if needed > 0.9 * available as f64 => Err(Failure::invalid(format!(
            "{what} needs about {} of memory, {} are available; {remedy}",
            bytes(needed),
            bytes(available as f64)
        ))),
        _ => Ok(()),
    }
}

/// The most memory that this process has had at once; `None` where the system does not tell.
pub(crate) fn peak() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
