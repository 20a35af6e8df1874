//! promtool of Prometheus, which judges rules and names where it is found: in `PATH`, or where
//! `tests/run.sh` puts it. Where it is not, what asks it says so and shows nothing.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Where promtool is.
fn promtool() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|dir| dir.join("promtool"));
    let ours = PathBuf::from(format!("{ROOT}/target/promtool"));
    let found = installed.chain([ours]).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("promtool is not found (Debian's package prometheus has it): not checked by it");
    }
    found
}

/// What it says of a file of ours or, where the last argument is none, of `input`.
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
    stdin.write_all(input.as_bytes()).expect("what it is to judge");
    drop(stdin);
    let output = child.wait_with_output().expect("an end");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&said));
}
