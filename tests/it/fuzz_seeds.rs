//! The checks of the fuzz targets (`tests/fuzz`) with their seeds, so that they stay in step with the
//! code between two runs of the fuzzer.

#![allow(clippy::print_stdout, reason = "a failure is preceded by the name of its seed")]

use std::{fs, path::Path};

#[allow(unreachable_pub, reason = "the targets use it as a library")]
#[path = "../fuzz/src/lib.rs"]
mod fuzz;

/// Returns the sorted names of the files in a folder of `tests/fuzz`.
fn names(folder: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(folder);
    let entries = fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("a file").file_name();
    let mut names: Vec<_> =
        entries.map(|entry| name(entry).into_string().expect("a readable name")).collect();
    names.sort_unstable();
    names
}

#[test]
fn the_seeds_of_each_fuzz_target_hold_its_properties() {
    for (target, check) in fuzz::CHECKS {
        let folder = format!("seeds/{target}");
        let seeds = names(&folder);
        assert!(!seeds.is_empty(), "{target} has no seed");
        for seed in seeds {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(&folder);
            let input = fs::read(path.join(&seed)).expect("a seed");
            println!("{target}: {seed}");
            check(&input);
        }
    }
}

#[test]
fn each_check_has_a_fuzz_target_and_seeds() {
    let checks: Vec<_> = fuzz::CHECKS.iter().map(|(name, _)| String::from(*name)).collect();
    assert_eq!(names("seeds"), checks);
    let targets: Vec<_> = checks.iter().map(|name| format!("{name}.rs")).collect();
    assert_eq!(names("targets"), targets);
    let manifest = include_str!("../fuzz/Cargo.toml");
    for name in checks {
        let target = format!("name = \"{name}\"\npath = \"targets/{name}.rs\"\n");
        assert!(manifest.contains(&target), "{name}");
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fuzz/targets/{name}.rs"));
        let check = format!(
            "#![no_main]\n\nlibfuzzer_sys::fuzz_target!(|data: &[u8]| jobcache_fuzz::{name}::run(data));\n"
        );
        assert_eq!(fs::read_to_string(path).expect("a target"), check, "{name}");
    }
}
