//! How much memory this machine has for trainers, where the configuration does not say: read once, when the server
//! starts, so that every price of a boot is made under one limit.

use std::path::Path;

/// Of the memory that is there at the start, three quarters, shared among the trainers that may run at once. The rest
/// is the server's (held models, uploads) and what the estimates miss.
pub(crate) fn memory_for_one_of(trainers: u32) -> u64 {
    let room = available_bytes(Path::new("/proc"), Path::new("/sys/fs/cgroup")).unwrap_or(UNKNOWN_BYTES);
    share(room, trainers)
}

fn share(room: u64, trainers: u32) -> u64 {
    room / 4 * 3 / u64::from(trainers.max(1))
}

/// What the kernel says can be had without swapping, or the limit of a control group that this process is in,
/// whichever is less. `None` where neither can be read.
fn available_bytes(proc: &Path, cgroup: &Path) -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let available = mem_available(&read(&proc.join("meminfo")));
    let groups = read(&proc.join("self/cgroup"));
    let limits = groups.lines().filter_map(|line| group_limit(line, cgroup));
    limits.chain(available).min()
}

/// `MemAvailable:   21752224 kB`, in bytes (proc_meminfo(5)).
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The least limit of a group and of those it is in, from its line in `/proc/self/cgroup`: `0::/path` of version 2,
/// `N:memory:/path` of version 1 (cgroups(7)). Within a container the path may be the host's: its root then counts.
fn group_limit(line: &str, mounted: &Path) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (root, file) = if controllers.is_empty() {
        (mounted.to_path_buf(), "memory.max")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        (mounted.join("memory"), "memory.limit_in_bytes")
    } else {
        return None;
    };
    let group = root.join(path.trim_start_matches('/'));
    let up_to_root = group.ancestors().take_while(|folder| folder.starts_with(&root));
    let limits = up_to_root.filter_map(|folder| std::fs::read_to_string(folder.join(file)).ok());
    // "max" is no limit, and no number.
    limits.filter_map(|text| text.trim().parse().ok()).min()
}

/// Where the system tells nothing.
const UNKNOWN_BYTES: u64 = 4 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       24684084 kB\nMemFree:        1 kB\nMemAvailable:   8388608 kB\n";

    /// A machine made of files: `(path below its root, text)`.
    fn available(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        available_bytes(&root.path().join("proc"), &root.path().join("cgroup"))
    }

    #[test]
    fn memory_is_what_the_kernel_calls_available_or_the_least_limit_of_the_groups_around_this_process() {
        let meminfo = ("proc/meminfo", MEMINFO);
        assert_eq!(available(&[meminfo]), Some(8 << 30));
        let second = ("proc/self/cgroup", "0::/system.slice/bastionai.service\n");
        let unlimited = ("cgroup/system.slice/bastionai.service/memory.max", "max\n");
        assert_eq!(available(&[meminfo, second, unlimited]), Some(8 << 30));
        let slice = ("cgroup/system.slice/memory.max", "2147483648\n");
        assert_eq!(available(&[meminfo, second, unlimited, slice]), Some(2 << 30));
        let wide = ("cgroup/memory.max", "99999999999999\n");
        assert_eq!(available(&[meminfo, second, unlimited, wide]), Some(8 << 30));
    }

    #[test]
    fn limits_of_version_1_and_of_containers_that_see_their_hosts_path_count() {
        let first = (
            "proc/self/cgroup",
            "12:cpu,cpuacct:/docker/abc\n7:memory:/docker/abc\n0::/docker/abc\n",
        );
        let limit = ("cgroup/memory/memory.limit_in_bytes", "1073741824\n");
        assert_eq!(
            available(&[("proc/meminfo", MEMINFO), first, limit]),
            Some(1 << 30)
        );
    }

    #[test]
    fn a_machine_that_tells_nothing_has_a_stated_share() {
        assert_eq!(available(&[]), None);
        assert_eq!(
            available(&[
                ("proc/meminfo", "MemAvailable: lots\n"),
                ("proc/self/cgroup", "?\n")
            ]),
            None
        );
        assert_eq!(share(8 << 30, 2), 3 << 30);
        assert_eq!(share(4 << 30, 0), 3 << 30);
    }
}
