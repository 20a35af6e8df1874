//! The processes of clients, as the benchmark sees them.

use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{
    Result,
    crowd::{Assignment, Sighting, Totals},
    perform::PATIENCE,
    play::Play,
    process::Process,
    report::cores,
};

/// Fewest clients for which a further process is worth it. A process has room for 20,000 open files on
/// many machines.
const CLIENTS_A_PROCESS: usize = 500;

/// Running processes of clients.
pub(crate) struct Crowds {
    controls: Vec<BufReader<TcpStream>>,
    _processes: Vec<Process>,
    _dir: TempDir,
}

impl Crowds {
    /// Starts the clients of a play, in as many processes as there are cores.
    pub(crate) async fn start(play: &Play, server: SocketAddr) -> Result<Self> {
        let dir = TempDir::with_prefix("jobcache-bench-crowd-")?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let count = cores().min(play.clients.div_ceil(CLIENTS_A_PROCESS)).max(1);
        let (mut controls, mut processes) = (Vec::new(), Vec::new());
        for number in 0..count {
            let first = play.clients * number / count;
            let assignment = Assignment {
                control: listener.local_addr()?,
                server,
                form: play.form,
                identities: play.identities,
                first,
                count: play.clients * (number + 1) / count - first,
            };
            let arguments = ["--crowd".to_owned(), serde_json::to_string(&assignment)?];
            processes.push(Process::spawn(std::env::current_exe()?, &arguments, dir.path())?);
            let (control, _) = timeout(PATIENCE, listener.accept()).await??;
            controls.push(BufReader::new(control));
        }
        Ok(Self { controls, _processes: processes, _dir: dir })
    }

    /// Returns the totals of all processes.
    pub(crate) async fn totals(&mut self) -> Result<Totals> {
        let mut sum = Totals::default();
        for totals in self.ask::<Totals>("totals").await? {
            sum.ready += totals.ready;
            sum.requests += totals.requests;
            sum.failed += totals.failed;
            sum.versions += totals.versions;
        }
        Ok(sum)
    }

    /// Returns everything that the clients have seen.
    pub(crate) async fn sightings(&mut self) -> Result<Vec<Sighting>> {
        Ok(self.ask::<Vec<Sighting>>("sightings").await?.concat())
    }

    async fn ask<T: DeserializeOwned>(&mut self, question: &str) -> Result<Vec<T>> {
        let mut answers = Vec::new();
        for control in &mut self.controls {
            let exchange = async {
                let mut line = String::new();
                control.get_mut().write_all(format!("{question}\n").as_bytes()).await?;
                control.read_line(&mut line).await?;
                Ok::<_, std::io::Error>(line)
            };
            answers.push(serde_json::from_str(&timeout(PATIENCE, exchange).await??)?);
        }
        Ok(answers)
    }
}
