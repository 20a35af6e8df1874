//! Output of the command line for other programs: completions for shells, and the generated documents.

use std::io::{self, Write as _};

use clap::CommandFactory as _;
use clap_complete::Shell;
use jobcache::config;

use super::{Cli, Document, flags::with_choices, manual_page::manual_page};

const NAME: &str = "jobcache";

/// Prints a generated document.
pub(crate) fn document(document: Document) -> io::Result<()> {
    match document {
        Document::Settings => print(config::settings_page().as_bytes()),
        Document::Toml => print(config::reference_toml().as_bytes()),
        Document::Man => manual(None),
    }
}

/// Prints the script that makes a shell complete the command line.
pub(crate) fn completions(shell: Shell) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut with_choices(Cli::command()), NAME, &mut script);
    print(&script)
}

/// Prints the manual page of the whole command, or of one of its commands.
pub(crate) fn manual(command: Option<&str>) -> io::Result<()> {
    print(&manual_page(command)?)
}

/// Writes `text` at once: a reader that stops early (`| head`) is not an error.
fn print(text: &[u8]) -> io::Result<()> {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}
