//! Where figures go, and what they were taken on.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    Result,
    plot::{self, Panel},
};

/// Where the figures of one benchmark go.
#[derive(Debug)]
pub(crate) struct Report {
    name: &'static str,
    dirs: Vec<PathBuf>,
}

impl Report {
    /// Below the build, and into the repository where they are to be kept.
    pub(crate) fn new(name: &'static str, keep: bool) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut dirs = vec![build_dir().join("bench")];
        if keep {
            dirs.push(root.join("benches/figures"));
        }
        Self { name, dirs }
    }

    /// Writes the figures as JSON, the tables as Markdown and the bars, where there are any, as SVG.
    pub(crate) fn write(
        &self,
        figures: &Value,
        tables: &str,
        title: &str,
        panels: &[Panel],
    ) -> Result<()> {
        for dir in &self.dirs {
            fs::create_dir_all(dir)?;
            let file = |ending: &str| dir.join(format!("{}.{ending}", self.name));
            fs::write(file("json"), serde_json::to_string(figures)? + "\n")?;
            fs::write(file("md"), tables)?;
            if !panels.is_empty() {
                plot::draw(&file("svg"), title, panels)?;
            }
            println!("written: {}", file("*").display());
        }
        Ok(())
    }
}

/// The target directory that this benchmark was built in: `target/release/deps/peers-1234`.
fn build_dir() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors().nth(3).map_or_else(|| PathBuf::from("target"), Path::to_path_buf)
}

/// Hardware, system and load: without them no figure means anything.
pub(crate) fn machine() -> Value {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    json!({
        "cpu": model.map_or("unknown", |(_, model)| model),
        "cores": cores(),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "load_average_at_start": load.split(' ').take(3).collect::<Vec<_>>().join(" "),
        "redis": first_line(Command::new("redis-server").arg("--version")),
        "jobcache": env!("CARGO_PKG_VERSION"),
    })
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What a program says first, on either channel.
pub(crate) fn first_line(command: &mut Command) -> String {
    let Ok(output) = command.output() else { return "not installed".to_owned() };
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).lines().next().unwrap_or_default().trim().to_owned()
}
