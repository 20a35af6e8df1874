//! The memory limit of the cgroup in which this process runs, of version 1, version 2 or both.
//!
//! A limit of any group above counts too. In a container, `/proc/self/cgroup` may give the path of the group
//! on the host, which does not exist inside; then only the mount of the hierarchy itself is read.
//! `derived_settings.rs` lowers the defaults that do not fit.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use super::parse::show_bytes;

/// Most groups above this process that are looked at.
const MAX_DEPTH: usize = 64;
/// Mounts that are tried where `/proc/self/mountinfo` does not name any.
const USUAL_MOUNTS: [(CgroupVersion, &str); 2] =
    [(CgroupVersion::Two, "/sys/fs/cgroup"), (CgroupVersion::One, "/sys/fs/cgroup/memory")];

/// The lowest memory limit that applies to this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// The limit.
    pub bytes: usize,
    /// The file that holds it.
    pub file: PathBuf,
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", show_bytes(self.bytes), self.file.display())
    }
}

/// Versions of cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CgroupVersion {
    One,
    Two,
}

/// A mounted hierarchy.
struct Hierarchy {
    version: CgroupVersion,
    /// The group that is mounted.
    group: PathBuf,
    mount: PathBuf,
}

impl MemoryLimit {
    /// Reads the limit from the file system below `root`, which is `/` outside of tests. `None` without
    /// a limit.
    pub fn read(root: &Path) -> Option<Self> {
        let own = fs::read_to_string(below(root, Path::new("/proc/self/cgroup"))).ok()?;
        let mounts = fs::read_to_string(below(root, Path::new("/proc/self/mountinfo")));
        let mut hierarchies: Vec<_> =
            mounts.unwrap_or_default().lines().filter_map(hierarchy).collect();
        if hierarchies.is_empty() {
            hierarchies.extend(USUAL_MOUNTS.map(|(version, mount)| Hierarchy {
                version,
                group: "/".into(),
                mount: mount.into(),
            }));
        }
        let limits = hierarchies.iter().filter_map(|hierarchy| hierarchy.limit(root, &own));
        limits.min_by_key(|limit| limit.bytes)
    }
}

impl Hierarchy {
    /// The lowest limit of the groups from that of this process up to the mount.
    fn limit(&self, root: &Path, own: &str) -> Option<MemoryLimit> {
        let group = own.lines().find_map(|line| self.version.own_group(line))?;
        let inside = group.strip_prefix(&self.group).unwrap_or(Path::new(""));
        let groups = inside.ancestors().take(MAX_DEPTH).map(|inside| self.mount.join(inside));
        let files =
            groups.flat_map(|group| self.version.files().iter().map(move |file| group.join(file)));
        let limit = |file: PathBuf| {
            let text = fs::read_to_string(below(root, &file)).ok()?;
            // `max` of version 2 is not a number. "No limit" of version 1 is one, larger than any memory.
            Some(MemoryLimit { bytes: text.trim().parse().ok()?, file })
        };
        files.filter_map(limit).min_by_key(|limit| limit.bytes)
    }
}

impl CgroupVersion {
    /// The group of this process, from its line of `/proc/self/cgroup`: `id:controllers:group`.
    fn own_group(self, line: &str) -> Option<&Path> {
        let mut parts = line.splitn(3, ':');
        let (id, controllers, group) = (parts.next()?, parts.next()?, parts.next()?);
        let is_own = match self {
            Self::One => controllers.split(',').any(|name| name == "memory"),
            Self::Two => id == "0" && controllers.is_empty(),
        };
        // A group outside of what this process may see begins with `/..`.
        let visible = if Path::new(group).starts_with("/..") { "/" } else { group };
        is_own.then_some(Path::new(visible))
    }

    /// Returns the names of the files with limits. `memory.high` counts as one, because a process above it
    /// is slowed down until it hardly runs.
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::One => &["memory.limit_in_bytes"],
            Self::Two => &["memory.max", "memory.high"],
        }
    }
}

/// Parses a line of `/proc/self/mountinfo`: id, parent, device, mounted group, mount, options, `-`, type,
/// source, options of the file system.
fn hierarchy(line: &str) -> Option<Hierarchy> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (group, mount) = (mount.next()?.into(), mount.next()?.into());
    let mut file_system = file_system.split(' ');
    let version = match file_system.next()? {
        "cgroup2" => CgroupVersion::Two,
        "cgroup" if file_system.nth(1)?.split(',').any(|option| option == "memory") => {
            CgroupVersion::One
        }
        _ => return None,
    };
    Some(Hierarchy { version, group, mount })
}

/// Returns an absolute path as it is below another root.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str =
        "26 22 0:24 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
    const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory";
    const HYBRID: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                          41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
    const MIB: usize = 1 << 20;

    /// The limit in MiB, and its file, with these files below a root.
    #[track_caller]
    fn read(own: &str, mounts: &str, files: &[(&str, &str)]) -> Option<(usize, String)> {
        let root = tempfile::tempdir().unwrap();
        let given = [("/proc/self/cgroup", own), ("/proc/self/mountinfo", mounts)];
        for (path, text) in given.iter().chain(files).filter(|(_, text)| !text.is_empty()) {
            let path = below(root.path(), Path::new(path));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        let limit = MemoryLimit::read(root.path())?;
        Some((limit.bytes / MIB, limit.file.display().to_string()))
    }

    fn at(mib: usize, file: &str) -> (usize, String) {
        (mib, file.to_owned())
    }

    const MIB_96: &str = "100663296";
    const MIB_64: &str = "67108864";
    const NO_LIMIT: &str = "9223372036854771712";

    #[test]
    fn version_2_is_read_at_the_mount_of_a_container_and_of_nested_groups() {
        let max = "/sys/fs/cgroup/memory.max";
        assert_eq!(read("0::/", V2, &[(max, MIB_96)]), Some(at(96, max)));
        assert_eq!(read("0::/", V2, &[(max, "max")]), None);
        let (pod, own) = ("/sys/fs/cgroup/pod/memory.max", "/sys/fs/cgroup/pod/one/memory.max");
        let nested =
            |pod_limit, own_limit| read("0::/pod/one", V2, &[(pod, pod_limit), (own, own_limit)]);
        assert_eq!(nested("max", MIB_96), Some(at(96, own)));
        assert_eq!(nested(MIB_64, MIB_96), Some(at(64, pod)), "the lowest of all counts");
        assert_eq!(nested(MIB_96, "max"), Some(at(96, pod)));
    }

    #[test]
    fn the_limit_above_which_a_process_is_slowed_down_counts() {
        let high = "/sys/fs/cgroup/a/memory.high";
        let files = [("/sys/fs/cgroup/a/memory.max", MIB_96), (high, MIB_64)];
        assert_eq!(read("0::/a", V2, &files), Some(at(64, high)));
    }

    #[test]
    fn a_group_that_a_container_cannot_see_is_that_of_the_mount() {
        let max = "/sys/fs/cgroup/memory.max";
        for own in ["0::/../../system.slice", "0::/docker/1234"] {
            assert_eq!(read(own, V2, &[(max, MIB_96)]), Some(at(96, max)), "{own}");
        }
        let mounted = "26 22 0:24 /docker/12 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let limit = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
        assert_eq!(read("4:memory:/docker/12", mounted, &[(limit, MIB_96)]), Some(at(96, limit)));
    }

    #[test]
    fn version_1_is_read_likewise_and_its_largest_number_is_no_limit_that_counts() {
        let own = "5:cpu,cpuacct:/x\n4:memory:/a/b";
        let a = "/sys/fs/cgroup/memory/a/memory.limit_in_bytes";
        let b = "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes";
        assert_eq!(read(own, V1, &[(a, NO_LIMIT), (b, MIB_96)]), Some(at(96, b)));
        assert_eq!(read(own, V1, &[(a, MIB_64), (b, NO_LIMIT)]), Some(at(64, a)));
        let (mib, _) = read(own, V1, &[(a, NO_LIMIT)]).unwrap();
        assert!(mib > 1 << 30);
    }

    #[test]
    fn of_both_versions_the_one_with_the_memory_counts() {
        let limit = "/sys/fs/cgroup/memory/a/memory.limit_in_bytes";
        let own = "4:memory:/a\n0::/a";
        assert_eq!(read(own, HYBRID, &[(limit, MIB_96)]), Some(at(96, limit)));
        let unified = "/sys/fs/cgroup/unified/a/memory.max";
        assert_eq!(read(own, HYBRID, &[(unified, MIB_96)]), Some(at(96, unified)));
    }

    #[test]
    fn without_mounts_the_usual_places_are_tried_and_without_anything_there_is_no_limit() {
        let max = "/sys/fs/cgroup/a/memory.max";
        assert_eq!(read("0::/a", "", &[(max, MIB_96)]), Some(at(96, max)));
        assert_eq!(read("", V2, &[(max, MIB_96)]), None);
        assert_eq!(read("0::/a", V2, &[(max, "swordfish")]), None);
        assert_eq!(read("nothing of the kind", "nor this", &[]), None);
    }
}
