//! What the worker knows of its machine without measuring: name, processor, memory and how much of it
//! weights may take. The measured part is `crate::measure`.

use std::path::{Path, PathBuf};

use shoal_core::units::Bytes;

/// The least that is left to the rest of the machine and to the process's own overhead.
pub const RESERVE_LEAST: Bytes = Bytes::mib(128);

/// The most that is left: a large machine needs no tenth.
pub const RESERVE_MOST: Bytes = Bytes::mib(2048);

/// What is assumed of a system that does not tell its memory: the smallest board Shoal aims at.
const UNKNOWN_MEMORY: Bytes = Bytes::mib(1024);

/// Memory of the machine, or of the process's control group where that is less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub total: Bytes,
    /// Free now, file caches that can be dropped included.
    pub available: Bytes,
}

impl Memory {
    /// Asks the system.
    pub fn read() -> Self {
        let mut memory = meminfo().unwrap_or_else(|| {
            let total = sysctl_memory().unwrap_or(UNKNOWN_MEMORY);
            Self { total, available: total }
        });
        for limit in cgroup_limits(Path::new("/sys/fs/cgroup"), &own_cgroups("memory")) {
            memory.total = memory.total.min(limit.total);
            memory.available = memory.available.min(limit.available);
        }
        memory
    }

    /// What is left to everything else: a tenth of the machine, within [`RESERVE_LEAST`] and
    /// [`RESERVE_MOST`].
    pub fn reserve(&self) -> Bytes {
        Bytes(self.total.0 / 10).max(RESERVE_LEAST).min(RESERVE_MOST)
    }

    /// What weights, KV and buffers may take when nobody says a number.
    pub fn usable(&self) -> Bytes {
        self.available.saturating_sub(self.reserve())
    }
}

/// Resident set of this process; zero where the system does not tell.
pub fn process_resident() -> Bytes {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    kilobytes(&text, "VmRSS:").unwrap_or_default()
}

/// The host's name, or `worker` where it has none.
pub fn host_name() -> String {
    let file = |path| std::fs::read_to_string(path).ok();
    let name = file("/proc/sys/kernel/hostname").or_else(|| file("/etc/hostname"));
    let name = name.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| !c.is_control()).take(64).collect();
    if name.is_empty() { "worker".to_owned() } else { name }
}

/// Processor and build, under which measurements may be cached. The build is told by the program's own bytes: kernels
/// and their speed may change from one to the next under the same version.
pub fn hardware() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let board = std::fs::read_to_string("/proc/device-tree/model").ok();
    let board = board.map(|name| name.trim_matches(['\0', '\n', ' ']).to_owned());
    let cpu = board.or_else(|| field("model name")).or_else(|| field("Hardware"));
    let cpu: String = cpu.unwrap_or_else(|| "unknown processor".to_owned()).chars().take(128).collect();
    let (arch, os, version) = (std::env::consts::ARCH, std::env::consts::OS, env!("CARGO_PKG_VERSION"));
    let build = build().map(|build| format!("+{build}")).unwrap_or_default();
    // What was measured under a quota of processor time is nothing to go by without it.
    let quota = cpu_quota(Path::new("/sys/fs/cgroup"), &own_cgroups("cpu"));
    let quota = quota.map(|quota| format!("; {quota:.3} processors")).unwrap_or_default();
    format!("{cpu}; {arch}-{os}; {version}{build}{quota}")
}

/// Processors whose time the narrowest of these groups and of all above them may take; `None` without a quota.
fn cpu_quota(mount: &Path, groups: &[PathBuf]) -> Option<f64> {
    let text = |path: PathBuf| std::fs::read_to_string(path).ok();
    let of = |dir: PathBuf| {
        // Version 2 has both numbers in one file, version 1 has two files; "max" and -1 are no quota.
        let both = text(dir.join("cpu.max")).or_else(|| {
            Some(text(dir.join("cpu.cfs_quota_us"))? + " " + &text(dir.join("cpu.cfs_period_us"))?)
        })?;
        let mut numbers = both.split_whitespace().map_while(|number| number.parse::<f64>().ok());
        let (quota, period) = (numbers.next()?, numbers.next()?);
        (quota > 0.0 && period > 0.0).then_some(quota / period)
    };
    let dirs = groups.iter().flat_map(|group| group.ancestors()).map(|at| mount.join(at));
    dirs.filter_map(of).min_by(f64::total_cmp)
}

/// The first digits of this program's hash; `None` where it cannot be read.
fn build() -> Option<String> {
    let mut hash = blake3::Hasher::new();
    hash.update_reader(std::fs::File::open(std::env::current_exe().ok()?).ok()?).ok()?;
    Some(hash.finalize().to_hex()[..8].to_owned())
}

fn meminfo() -> Option<Memory> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    Some(Memory { total: kilobytes(&text, "MemTotal:")?, available: kilobytes(&text, "MemAvailable:")? })
}

/// The value of a `Name:  123 kB` line.
fn kilobytes(text: &str, name: &str) -> Option<Bytes> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(number.saturating_mul(1024)))
}

fn sysctl_memory() -> Option<Bytes> {
    let output = std::process::Command::new("sysctl").args(["-n", "hw.memsize"]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok().map(Bytes)
}

/// The process's control groups, as paths below the mount: version 2's, or version 1's of this controller.
fn own_cgroups(controller: &str) -> Vec<PathBuf> {
    own_groups(&std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default(), controller)
}

fn own_groups(text: &str, controller: &str) -> Vec<PathBuf> {
    let groups = text.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        match controllers {
            "" => Some(PathBuf::from(path)),
            list if list.split(',').any(|name| name == controller) => Some(Path::new(controller).join(path)),
            _ => None,
        }
    });
    groups.collect()
}

/// The limits of these groups and of all above them, each with what is left of it.
fn cgroup_limits(mount: &Path, groups: &[PathBuf]) -> Vec<Memory> {
    let number = |path: PathBuf| -> Option<u64> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
    let mut limits = Vec::new();
    for group in groups {
        for at in group.ancestors() {
            let dir = mount.join(at);
            let files =
                [("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")];
            for (limit, usage) in files {
                // "max" is no number, and version 1 writes "no limit" as a huge one: the minimum drops both.
                if let Some(total) = number(dir.join(limit)) {
                    let cached = number_of(&dir.join("memory.stat"), "inactive_file ").unwrap_or(0);
                    let used = number(dir.join(usage)).unwrap_or(0).saturating_sub(cached);
                    limits.push(Memory { total: Bytes(total), available: Bytes(total.saturating_sub(used)) });
                }
            }
        }
    }
    limits
}

fn number_of(path: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_a_tenth_within_bounds() {
        let usable = |total, available| Memory { total, available }.usable();
        assert_eq!(usable(Bytes::mib(1000), Bytes::mib(800)), Bytes::mib(672));
        assert_eq!(usable(Bytes::mib(4000), Bytes::mib(3000)), Bytes::mib(2600));
        assert_eq!(usable(Bytes::mib(64_000), Bytes::mib(60_000)), Bytes::mib(57_952));
        assert_eq!(usable(Bytes::mib(1000), Bytes::mib(100)), Bytes(0));
    }

    #[test]
    fn the_narrowest_control_group_counts() {
        let dir = tempfile::tempdir().expect("folder");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            std::fs::write(path, text).expect("write");
        };
        write("a/memory.max", "1000\n");
        write("a/memory.current", "600\n");
        write("a/memory.stat", "anon 500\ninactive_file 100\n");
        write("a/b/memory.max", "max\n");
        let limits = cgroup_limits(dir.path(), &[PathBuf::from("a/b")]);
        assert_eq!(limits, [Memory { total: Bytes(1000), available: Bytes(500) }]);
    }

    #[test]
    fn version_one_groups_count_as_well_and_their_no_limit_is_none() {
        let dir = tempfile::tempdir().expect("folder");
        let write = |path: &str, text: &str| {
            let path = dir.path().join("memory").join(path);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            std::fs::write(path, text).expect("write");
        };
        write("memory.limit_in_bytes", "9223372036854771712\n");
        write("memory.usage_in_bytes", "5000\n");
        write("box/memory.limit_in_bytes", "4000\n");
        write("box/memory.usage_in_bytes", "4500\n");
        let limits = cgroup_limits(dir.path(), &[PathBuf::from("memory/box")]);
        // A group that uses more than its limit has nothing left.
        assert_eq!(limits[0], Memory { total: Bytes(4000), available: Bytes(0) });
        assert!(limits[1].total > Bytes::mib(1 << 40), "{limits:?}");
        assert_eq!(
            own_groups("5:cpu,memory:/box\n4:cpuset:/\n0::/user\n", "memory"),
            [PathBuf::from("memory/box"), PathBuf::from("user")]
        );
    }

    #[test]
    fn the_narrowest_quota_of_processor_time_counts() {
        let dir = tempfile::tempdir().expect("folder");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            std::fs::write(path, text).expect("write");
        };
        let quota = |group: &str| cpu_quota(dir.path(), &[PathBuf::from(group)]);
        write("a/cpu.max", "150000 100000\n");
        write("a/b/cpu.max", "max 100000\n");
        write("a/b/c/cpu.max", "2500 5000\n");
        assert_eq!((quota("a/b"), quota("a/b/c"), quota("d")), (Some(1.5), Some(0.5), None));
        write("cpu/e/cpu.cfs_quota_us", "-1\n");
        write("cpu/e/cpu.cfs_period_us", "100000\n");
        assert_eq!(quota("cpu/e"), None);
        write("cpu/e/cpu.cfs_quota_us", "20000\n");
        assert_eq!(quota("cpu/e"), Some(0.2));
    }

    #[test]
    fn this_machine_has_memory() {
        let memory = Memory::read();
        assert!(memory.total >= memory.available && memory.total > Bytes(0), "{memory:?}");
        assert!(!hardware().is_empty() && !host_name().is_empty());
    }
}
