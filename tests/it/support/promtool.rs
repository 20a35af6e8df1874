//! Prometheus's promtool, which checks rules and metric names. It is found in `PATH`, or where
//! `tests/run.sh` puts it. Without it the tests print a message and check nothing.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Returns the path of promtool.
fn promtool() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|dir| dir.join("promtool"));
    let ours = PathBuf::from(format!("{ROOT}/target/promtool"));
    let found = installed.chain([ours]).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: promtool is not installed (it is in Debian's package prometheus)");
    }
    found
}

/// Asserts that promtool accepts a file of this repository or, if the arguments name none, `input`.
#[track_caller]
pub(crate) fn approves(args: &[&str], input: &str) {
    let Some(promtool) = promtool() else { return };
    let mut child = Command::new(promtool)
        .args(args)
        .current_dir(ROOT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs");
    let mut stdin = child.stdin.take().expect("a piped stdin");
    stdin.write_all(input.as_bytes()).expect("a child that reads");
    drop(stdin);
    let output = child.wait_with_output().expect("an end");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&said));
}
