//! `jobcache demo`, as a new user runs it.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{SOON, eventually};

/// Time limit for a demo of 8 seconds on two busy cores.
const DEMO: Duration = Duration::from_mins(1);

fn start(duration: &str) -> Child {
    start_with(duration, &[])
}

fn start_with(duration: &str, options: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_jobcache"))
        .args(["demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .args(["--duration", duration])
        .args(options)
        .env_remove("JOBCACHE_WEBHOOK_SECRET")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts")
}

/// Waits for the end. The output fits into the pipes and can be read afterwards.
async fn end(child: &mut Child, deadline: Duration) -> ExitStatus {
    eventually(deadline, async || child.try_wait().expect("the child process")).await
}

fn stderr(child: &mut Child) -> String {
    let mut text = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut text).expect("UTF-8");
    text
}

/// Returns the number after `name` in the closing summary.
#[track_caller]
fn figure(output: &str, name: &str) -> f64 {
    let line = output.lines().filter_map(|line| line.trim().strip_prefix(name)).next_back();
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no {name} in\n{output}"))
}

#[tokio::test]
async fn the_demo_spares_the_api_most_reads_and_shows_nothing_stale() {
    let mut child = start("8s");
    let status = end(&mut child, DEMO).await;
    let mut output = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut output).expect("UTF-8");
    assert!(status.success(), "{status}\n{output}\n{}", stderr(&mut child));
    assert!(figure(&output, "polls") > 100.0, "{output}");
    assert!(figure(&output, "reduction") > 50.0, "{output}");
    assert!(figure(&output, "purges") > 0.0, "{output}");
    assert!(figure(&output, "stale answers") < 1.0, "{output}");
    assert!(!output.contains("failed") && !output.contains("refused"), "{output}");
    assert!(!output.contains('\x1b'), "escape sequences without a terminal:\n{output}");
}

/// Returns the figures of polling and push in this row of the closing table.
#[track_caller]
fn pair(output: &str, name: &str) -> [String; 2] {
    let line = output.lines().map(str::trim).rfind(|line| line.starts_with(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in\n{output}"));
    [14..25, 25..38].map(|place| line.get(place).expect("a column").trim().to_owned())
}

#[tokio::test]
async fn the_demo_puts_polling_and_push_side_by_side() {
    let mut child = start_with("12s", &["--push", "--every", "3s"]);
    let status = end(&mut child, DEMO).await;
    let mut output = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut output).expect("UTF-8");
    assert!(status.success(), "{status}\n{output}\n{}", stderr(&mut child));
    let counts = |name| pair(&output, name).map(|n| n.parse::<u64>().expect("a count"));
    let [polls, streams] = counts("requests");
    assert!(polls > 200 && streams == 100, "{output}");
    assert!(counts("upstream reads").iter().all(|reads| (20..80).contains(reads)), "{output}");
    assert!(counts("changes seen").iter().all(|changes| *changes > 0), "{output}");
    assert_eq!(counts("stale answers"), [0, 0], "{output}");
    let millis = |delay: &String| -> f64 {
        let (number, unit) = delay.split_once(' ').expect("a unit");
        number.parse::<f64>().expect("a number") * if unit == "s" { 1_000.0 } else { 1.0 }
    };
    let delays = pair(&output, "median delay");
    let [polling, push] = delays.each_ref().map(millis);
    assert!(polling > 200.0 && push < polling / 2.0, "{output}");
    assert!(!output.contains("failed"), "{output}");
    // The line with the addresses is as long as their ports are.
    for line in output.lines().filter(|line| !line.contains("http://")) {
        assert!(line.chars().count() <= 80, "too wide: {line}");
    }
}

#[tokio::test]
async fn ctrl_c_ends_the_demo_with_its_summary() {
    let mut child = start("1h");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let invited =
        lines.by_ref().any(|line| line.expect("UTF-8").starts_with("Ctrl-C ends the demo"));
    assert!(invited, "{}", stderr(&mut child));
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).expect("the child process");
    let status = end(&mut child, SOON).await;
    assert!(status.success(), "{status}: {}", stderr(&mut child));
    let rest: Vec<String> = lines.map(|line| line.expect("UTF-8")).collect();
    assert!(rest.iter().any(|line| line.trim().starts_with("stale answers")), "{rest:?}");
}

#[tokio::test]
async fn the_demo_ends_quietly_when_nobody_reads_it() {
    let mut child = start("1h");
    drop(child.stdout.take());
    let status = end(&mut child, SOON).await;
    assert!(status.success(), "{status}");
    assert_eq!(stderr(&mut child), "");
}
