//! The configuration file and the environment: every mistake is reported in one line and without
//! secrets, and a valid configuration survives a round trip.
//!
//! Input: environment lines `NAME: value`, an empty line, the file.

use std::{fs, path::PathBuf, sync::OnceLock};

use jobcache::config::{Config, Flags};

/// Checks one input.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (environment, file) = text.split_once("\n\n").unwrap_or(("", text));
    let pair = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        // Variables that name a file would make the target read it.
        let named = name == "JOBCACHE_CONFIG" || name.ends_with("_FILE");
        (!named).then(|| (name.to_owned(), value.to_owned()))
    };
    let environment: Vec<_> = environment.split('\n').filter_map(pair).collect();
    match load(file, environment) {
        Ok(loaded) => check_round(&loaded.config, &loaded.to_toml()),
        Err(invalid) => {
            assert!(!invalid.problems.is_empty());
            for problem in invalid.problems.iter().chain(&invalid.warnings) {
                let one_line = !problem.contains(|c: char| c.is_control());
                assert!(one_line, "{problem:?} could forge a line of a log");
            }
        }
    }
}

fn load(
    file: &str,
    environment: Vec<(String, String)>,
) -> Result<jobcache::config::LoadedConfig, jobcache::config::InvalidConfig> {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        std::env::temp_dir().join(format!("jobcache-fuzz-{}.toml", std::process::id()))
    });
    fs::write(path, file).expect("a writable temporary directory");
    let config = Some(path.to_string_lossy().into_owned());
    Config::load(Flags { config, values: Vec::new() }, environment)
}

/// The effective configuration, as a file, is the same; but secrets are hidden in it.
fn check_round(config: &Config, toml: &str) {
    for secret in config.webhook.secrets.iter().chain(&config.cache.credentials.secret) {
        assert!(!toml.contains(&format!("\"{}\"", secret.expose())), "a secret is printed");
    }
    if toml.contains("***") || toml.contains('@') || toml.contains("redacted") {
        return;
    }
    match load(toml, Vec::new()) {
        Ok(again) => assert_eq!(&again.config, config, "{toml}"),
        Err(invalid) => panic!("{invalid}\n{toml}"),
    }
}
