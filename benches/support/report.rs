//! Output files for figures, and the description of the machine.

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

/// Output directories of a benchmark's figures.
#[derive(Debug)]
pub(crate) struct Report {
    name: &'static str,
    dirs: Vec<PathBuf>,
}

impl Report {
    /// Writes below the build directory, and into the repository if `keep` is set.
    pub(crate) fn new(name: &'static str, keep: bool) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut dirs = vec![build_dir().join("bench")];
        if keep {
            dirs.push(root.join("benches/figures"));
        }
        Self { name, dirs }
    }

    /// Writes the figures as JSON, the tables as Markdown and the bars, if any, as SVG.
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

/// Returns the target directory of this benchmark, `target` for `target/release/deps/peers-1234`.
fn build_dir() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors().nth(3).map_or_else(|| PathBuf::from("target"), Path::to_path_buf)
}

/// Returns hardware, system and load, without which figures mean nothing.
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

/// Returns the number of cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Returns the first line that a program prints, on stdout or stderr.
pub(crate) fn first_line(command: &mut Command) -> String {
    let Ok(output) = command.output() else { return "not installed".to_owned() };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned()
}
