//! Python with the packages for the sample in `config/example` and the webhook client of
//! `docs/purging.md`.

use std::{path::Path, process::Command};

use serde_json::Value;

pub(crate) const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/python/bin/python3");

const YAML_TO_JSON: &str =
    "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";

/// Returns the interpreter of the venv that `tests/run.sh` creates, with an empty environment. It
/// is killed when the thread that starts it ends.
pub(crate) fn command() -> Command {
    assert!(Path::new(PYTHON).exists(), "{PYTHON} is missing; run tests/run.sh to create it");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", PYTHON, "-B"]).env_clear().env("PYTHONUNBUFFERED", "1");
    command
}

/// Returns the documents of a YAML file, given by its path in the repository.
pub(crate) fn yaml(path: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let output = command().args(["-c", YAML_TO_JSON]).arg(path).output().expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}
