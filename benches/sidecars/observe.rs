//! Counters of Redis and of the sidecars.

use std::{collections::BTreeMap, fs, net::SocketAddr, process::Command};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, header::HOST};

use crate::{Result, client::Client, stats::real};

/// Name of the connections that carry the notifications.
const TRACKING: &str = " name=jobcache-tracking ";

/// Named numbers at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading(BTreeMap<String, f64>);

impl Reading {
    /// Reads the counters of Redis: `INFO`, `INFO commandstats` as `calls_<command>`, and the bytes
    /// and segments sent over the tracking connections, as the kernel counts them.
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

    /// Reads the counters of one sidecar, without its histograms.
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

    /// Returns a number, or zero if it is missing.
    pub(crate) fn of(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// Returns the increase of a counter since `before`.
    pub(crate) fn since(&self, before: &Self, name: &str) -> f64 {
        self.of(name) - before.of(name)
    }

    /// Returns the sum of the increases of all counters with this prefix.
    pub(crate) fn all_since(&self, before: &Self, prefix: &str) -> f64 {
        let named = self.0.keys().filter(|name| name.starts_with(prefix));
        named.map(|name| self.since(before, name)).sum()
    }

    /// Reads a line of `INFO`.
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

/// Returns the CPU time of a process's main thread in seconds; the kernel counts nanoseconds.
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

/// Returns bytes and segments sent from a port to these peers, or zero without iproute2.
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
