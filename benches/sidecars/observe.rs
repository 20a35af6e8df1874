//! What Redis and the sidecars say of themselves.

use std::{collections::BTreeMap, fs, net::SocketAddr, process::Command};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, header::HOST};

use crate::{Result, client::Client, stats::real};

/// The name of the connections that carry the news.
const TRACKING: &str = " name=jobcache-tracking ";

/// Numbers by their names, at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading(BTreeMap<String, f64>);

impl Reading {
    /// All of Redis: `INFO`, `INFO commandstats` as `calls_<command>`, and what has gone out over the
    /// connections that carry the news, by the kernel's count.
    pub(crate) fn of_redis(connection: &mut redis::Connection, port: u16) -> Result<Self> {
        let mut reading = Self::default();
        for section in ["everything", "commandstats"] {
            let text: String = redis::cmd("INFO").arg(section).query(connection)?;
            text.lines().for_each(|line| reading.take(line));
        }
        let clients: String = redis::cmd("CLIENT").arg("LIST").query(connection)?;
        let tracking: Vec<&str> = clients.lines().filter(|line| line.contains(TRACKING)).collect();
        reading.put("tracking_connections", real(tracking.len() as u64));
        let most = tracking.iter().filter_map(|line| field(line, "tot-mem=")).fold(0.0, f64::max);
        reading.put("tracking_connection_bytes", most);
        let peers: Vec<&str> = tracking.iter().filter_map(|line| word(line, "addr=")).collect();
        let (bytes, segments) = sent(port, &peers);
        reading.put("tracking_sent_bytes", bytes);
        reading.put("tracking_sent_segments", segments);
        Ok(reading)
    }

    /// The counters of one sidecar, without its histograms.
    pub(crate) async fn of_sidecar(admin: SocketAddr) -> Result<Self> {
        let request = Request::get("/metrics").header(HOST, admin.to_string());
        let response = Client::new(admin).send(request.body(Full::<Bytes>::default())?).await?;
        let text = std::str::from_utf8(response.body())?;
        let mut reading = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, value)) = line.rsplit_once(' ')
                && let Ok(value) = value.parse()
            {
                reading.put(name, value);
            }
        }
        Ok(reading)
    }

    /// A number; zero where there is none.
    pub(crate) fn of(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// What a counter has risen by since.
    pub(crate) fn since(&self, before: &Self, name: &str) -> f64 {
        self.of(name) - before.of(name)
    }

    /// What all counters whose names begin so have risen by since.
    pub(crate) fn all_since(&self, before: &Self, prefix: &str) -> f64 {
        let named = self.0.keys().filter(|name| name.starts_with(prefix));
        named.map(|name| self.since(before, name)).sum()
    }

    /// A line of `INFO`.
    fn take(&mut self, line: &str) {
        let Some((name, value)) = line.split_once(':') else { return };
        if let Some(command) = name.strip_prefix("cmdstat_") {
            if let Some(calls) = field(value, "calls=") {
                self.put(&format!("calls_{command}"), calls);
            }
        } else if let Ok(value) = value.trim().parse() {
            self.put(name, value);
        }
    }

    fn put(&mut self, name: &str, value: f64) {
        self.0.insert(name.to_owned(), value);
    }
}

/// CPU seconds of the main thread of a process, which the kernel counts in nanoseconds.
pub(crate) fn thread_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat"))?;
    let ns: u64 = stat.split(' ').next().unwrap_or_default().parse()?;
    Ok(real(ns) / 1e9)
}

fn word<'l>(line: &'l str, name: &str) -> Option<&'l str> {
    let value = line.split([' ', ',']).find_map(|word| word.strip_prefix(name))?;
    Some(value.trim())
}

fn field(line: &str, name: &str) -> Option<f64> {
    word(line, name)?.parse().ok()
}

/// Bytes and segments that have gone out from a port to these peers; zero without iproute2.
fn sent(port: u16, peers: &[&str]) -> (f64, f64) {
    let output = Command::new("ss").args(["-tinHO", &format!("sport = :{port}")]).output();
    let Ok(output) = output else { return (0.0, 0.0) };
    let text = String::from_utf8_lossy(&output.stdout);
    let ours =
        text.lines().filter(|line| line.split_whitespace().any(|word| peers.contains(&word)));
    ours.fold((0.0, 0.0), |(bytes, segments), line| {
        let count = |name| field(line, name).unwrap_or_default();
        (bytes + count("bytes_sent:"), segments + count("data_segs_out:"))
    })
}
