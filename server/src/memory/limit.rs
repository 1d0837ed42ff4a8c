//! The memory limit of the cgroup that the process is in, which is that of its container or service.
//!
//! A limit of a group holds for all groups below it too, so the smallest on the way up to the root counts.
//! It is the file system of the groups that is read, of version 1 and 2, and only as far up as it is
//! mounted: a container may see its own group as the root.

use std::fs;
use std::path::{Path, PathBuf};

/// Limits from here on are none: version 1 writes the largest multiple of a page that it knows, about 8
/// EiB, where there is none.
const NONE_FROM: u64 = 1 << 60;

/// What a version of cgroups calls its limits.
struct Version {
    /// The type of its file system.
    file_system: &'static str,
    /// The controller in the options of its mount and in the lines of `/proc/self/cgroup`. Version 2 has
    /// all of them in one.
    controller: Option<&'static str>,
    /// The files of limits. The kernel kills what exceeds `memory.max`, and slows down what exceeds
    /// `memory.high` so much that no stream would keep up.
    files: &'static [&'static str],
}

const VERSIONS: [Version; 2] = [
    Version {
        file_system: "cgroup2",
        controller: None,
        files: &["memory.max", "memory.high"],
    },
    Version {
        file_system: "cgroup",
        controller: Some("memory"),
        files: &["memory.limit_in_bytes"],
    },
];

/// The limit of this process's cgroup, in bytes. `None` when it has none, or there are no cgroups.
pub(crate) fn cgroup_limit() -> Option<usize> {
    limit_below(Path::new("/"))
}

/// The same, on a machine whose root is this folder.
fn limit_below(root: &Path) -> Option<usize> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    let limits = VERSIONS
        .iter()
        .filter_map(|version| version.limit(root, &groups, &mounts));
    limits.min()
}

impl Version {
    fn limit(&self, root: &Path, groups: &str, mounts: &str) -> Option<usize> {
        let group = groups.lines().find_map(|line| self.group(line))?;
        let (top, mount_point) = mounts.lines().find_map(|line| self.mount(line))?;
        let mounted = root.join(mount_point.trim_start_matches('/'));
        // A group outside of what is mounted is seen as its top.
        let below = Path::new(group).strip_prefix(top).unwrap_or(Path::new(""));
        let mut folder: PathBuf = mounted.join(below);
        let mut least = None;
        while folder.starts_with(&mounted) {
            let limits = self
                .files
                .iter()
                .filter_map(|file| read(&folder.join(file)));
            least = limits.chain(least).min();
            if !folder.pop() {
                break;
            }
        }
        least
    }

    /// The path of the process's group, from a line such as `4:memory:/path` or `0::/path`.
    fn group<'a>(&self, line: &'a str) -> Option<&'a str> {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let is_ours = match self.controller {
            None => controllers.is_empty(),
            Some(wanted) => controllers
                .split(',')
                .any(|controller| controller == wanted),
        };
        // Above the root of a namespace there is nothing to be seen.
        (is_ours && !path.contains("..")).then_some(path)
    }

    /// Which group is mounted where, from a line such as
    /// `31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw`.
    fn mount<'a>(&self, line: &'a str) -> Option<(&'a str, &'a str)> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut file_system = file_system.split(' ');
        let kind = file_system.next()?;
        let mut options = file_system.nth(1)?.split(',');
        let has_controller = |wanted| options.any(|option| option == wanted);
        let is_ours = kind == self.file_system && self.controller.is_none_or(has_controller);
        let mut mount = mount.split(' ').skip(3);
        is_ours.then_some((mount.next()?, mount.next()?))
    }
}

/// The limit in a file. `None` when it is missing, says that there is none, or cannot be understood.
fn read(file: &Path) -> Option<usize> {
    let limit: u64 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    let is_limit = (1..NONE_FROM).contains(&limit);
    is_limit.then_some(limit)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
    const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory";
    const MIB: usize = 1024 * 1024;

    /// The limit on a machine with these groups, these mounts, and these files below `/sys/fs/cgroup`.
    fn limit(groups: &str, mounts: &str, files: &[(&str, &str)]) -> Option<usize> {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/self/cgroup", groups);
        write("proc/self/mountinfo", mounts);
        for (file, text) in files {
            write(&format!("sys/fs/cgroup/{file}"), text);
        }
        limit_below(root.path())
    }

    #[test]
    fn smallest_limit_up_to_the_root_counts() {
        let group = "0::/system.slice/driftless.service\n";
        let own = "system.slice/driftless.service/memory.max";
        let parent = "system.slice/memory.max";
        for (files, expected) in [
            (&[][..], None),
            (&[(own, "536870912\n")], Some(512 * MIB)),
            (&[(own, "max\n")], None),
            (
                &[(own, "max\n"), (parent, "1073741824\n")],
                Some(1024 * MIB),
            ),
            (
                &[(own, "536870912\n"), (parent, "268435456\n")],
                Some(256 * MIB),
            ),
            (
                &[(own, "268435456\n"), (parent, "536870912\n")],
                Some(256 * MIB),
            ),
            (
                &[("memory.max", "268435456\n"), (own, "max\n")],
                Some(256 * MIB),
            ),
            // Of a group that the process is not in.
            (
                &[("system.slice/other.service/memory.max", "1048576\n")],
                None,
            ),
        ] {
            assert_eq!(limit(group, V2, files), expected, "{files:?}");
        }
        let high = "system.slice/driftless.service/memory.high";
        let both = [(own, "536870912\n"), (high, "268435456\n")];
        assert_eq!(limit(group, V2, &both), Some(256 * MIB));
    }

    #[test]
    fn version_one_has_its_own_files_and_mounts() {
        let group = "9:name=systemd:/\n4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n";
        let own = "memory/docker/abc/memory.limit_in_bytes";
        let none = "9223372036854771712\n";
        for (files, expected) in [
            (&[][..], None),
            (&[(own, none)], None),
            (&[(own, "268435456\n")], Some(256 * MIB)),
            (
                &[(own, none), ("memory/memory.limit_in_bytes", "536870912\n")],
                Some(512 * MIB),
            ),
        ] {
            assert_eq!(limit(group, V1, files), expected, "{files:?}");
        }
        // Both at once, as systemd once did.
        let both = format!("{V1}\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw");
        let files = [(own, "268435456\n"), ("unified/memory.max", "max\n")];
        assert_eq!(limit(group, &both, &files), Some(256 * MIB));
    }

    #[test]
    fn container_sees_its_own_group_as_the_root() {
        let files = [("memory.max", "268435456\n")];
        // In a namespace of its own.
        assert_eq!(limit("0::/\n", V2, &files), Some(256 * MIB));
        // In the host's, with its group mounted as the top.
        let mounted = V2.replace("0:26 / ", "0:26 /kubepods/pod1/abc ");
        let group = "0::/kubepods/pod1/abc\n";
        assert_eq!(limit(group, &mounted, &files), Some(256 * MIB));
        let inner = [("inner/memory.max", "1048576\n"), ("memory.max", "max\n")];
        let group = "0::/kubepods/pod1/abc/inner\n";
        assert_eq!(limit(group, &mounted, &inner), Some(MIB));
        // In another one than what is mounted.
        assert_eq!(limit("0::/elsewhere\n", &mounted, &files), Some(256 * MIB));
        assert_eq!(limit("0::/../other\n", V2, &files), None);
    }

    #[test]
    fn what_cannot_be_understood_is_no_limit() {
        for text in [
            "",
            "\n",
            "lots\n",
            "-1\n",
            "0\n",
            "1.5e9\n",
            "99999999999999999999999\n",
        ] {
            assert_eq!(
                limit("0::/\n", V2, &[("memory.max", text)]),
                None,
                "{text:?}"
            );
        }
        let files = [("memory.max", "268435456\n")];
        for (groups, mounts) in [
            ("", V2),
            ("0::/\n", ""),
            ("nonsense\n", V2),
            ("0::/\n", "nonsense - cgroup2\n- \n - a b"),
            // A controller whose name only begins alike.
            ("4:memory_recursive:/\n", V1),
        ] {
            assert_eq!(limit(groups, mounts, &files), None, "{groups:?} {mounts:?}");
        }
        let nowhere = tempfile::tempdir().unwrap();
        assert_eq!(limit_below(nowhere.path()), None);
    }
}
