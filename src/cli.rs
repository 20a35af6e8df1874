//! The command line. Flags of settings are only collected here; `config` checks them with all other
//! sources.

pub(crate) mod check;
mod flags;
pub(crate) mod manual_page;

use std::{
    io::{self, Write as _},
    mem,
};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, error::ErrorKind};
use clap_complete::Shell;
use flags::SettingFlags;
use hyper::Uri;
use jobcache::{config::Flags, demo};

/// Caches job status polls in front of an unchanged API.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100, after_help = AFTER, subcommand_help_heading = "Commands")]
pub(crate) struct Cli {
    #[command(flatten)]
    settings: SettingFlags,
    #[command(subcommand)]
    command: Option<Command>,
}

const AFTER: &str = "\
Without a command, jobcache serves. A flag wins over its variable, and the variable over the file. \
TIME has a unit: 50ms, 5s, 5m. There are more settings than flags: `jobcache check` prints all \
effective values, and `jobcache man | man -l -` explains them. Secrets have no flag, because other \
users could read it: set JOBCACHE_WEBHOOK_SECRET, or JOBCACHE_WEBHOOK_SECRET_FILE and JOBCACHE_REDIS_URL_FILE.";

/// Task that the command line asks for.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the cache at work between pollers and a sample API, without any setup
    Demo(demo::Args),
    /// Check the configuration, print it, and try Redis and the API
    Check(CheckArgs),
    /// Ask a running jobcache at its admin address whether it is alive
    Healthcheck(SettingFlags),
    /// Print the completions of a shell, such as for ~/.local/share/bash-completion/completions/jobcache
    Completions {
        /// Name of the shell
        shell: Shell,
    },
    /// Print the manual page, with every setting: jobcache man | man -l -
    Man {
        /// Print the page of this command instead
        #[arg(value_parser = ["demo", "check", "healthcheck", "completions", "man"])]
        command: Option<String>,
    },
    /// Print a document that is made from the table of settings
    #[command(hide = true)]
    Docs {
        /// Name of the document
        document: Document,
    },
}

/// A document that is made from the table of settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Document {
    /// docs/settings.md
    Settings,
    /// config/jobcache.toml
    Toml,
    /// The manual page, as of `jobcache man`
    Man,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    settings: SettingFlags,
    /// Exit with 1 unless Redis, the API, warm.file and warm.list can be reached
    #[arg(long)]
    pub(crate) strict: bool,
    /// Say what would happen to a GET and a PUT of this path, and check nothing else
    #[arg(long, value_name = "PATH", value_parser = path)]
    pub(crate) path: Vec<Uri>,
}

fn path(text: &str) -> Result<Uri, String> {
    if !text.starts_with('/') {
        return Err("a path begins with '/'".to_owned());
    }
    text.parse().map_err(|error| format!("not a path as clients send it: {error}"))
}

/// Parses the command line into flags and a command, if there is one; ends the process on `--help`,
/// `--version` and wrong usage.
pub(crate) fn parse() -> (Flags, Option<Command>) {
    Cli::parse().parts().unwrap_or_else(|error| error.exit())
}

impl Cli {
    /// Flags may stand before a command as well as after it; those after it win.
    fn parts(mut self) -> Result<(Flags, Option<Command>), clap::Error> {
        let flags = match &mut self.command {
            Some(
                Command::Check(CheckArgs { settings: after, .. }) | Command::Healthcheck(after),
            ) => mem::take(after).over(self.settings),
            Some(Command::Demo(_)) if self.settings != SettingFlags::default() => {
                let why = "flags before `demo` have no effect; put the flags of the demo after it";
                return Err(Self::command().error(ErrorKind::ArgumentConflict, why));
            }
            _ => self.settings.flags(),
        };
        Ok((flags, self.command))
    }
}

/// Writes `text` to standard output at once: a reader that stops early (`| head`) is not an error.
fn print_at_once(text: &[u8]) -> io::Result<()> {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use jobcache::config::RawValue;

    use super::*;

    #[track_caller]
    fn parts(line: &str) -> Result<(Flags, Option<Command>), clap::Error> {
        Cli::try_parse_from(line.split(' ')).and_then(Cli::parts)
    }

    fn one(name: &'static str, text: &str) -> (&'static str, RawValue) {
        (name, RawValue::One(text.to_owned()))
    }

    #[test]
    fn the_command_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_a_setting_sets_that_setting() {
        let line = "jobcache --listen 1 --admin 2 --upstream 3 --redis-url 4 --route 5 --route 6 \
                    --ttl 7 --settle 8 --store-budget 9 --mode 14 --near 12 --access-log --log 10 \
                    --log-format 13 --config 11";
        let Ok((flags, None)) = parts(line) else { panic!("{line}") };
        assert_eq!(flags.config.as_deref(), Some("11"));
        let many = ["5", "6"].map(str::to_owned).to_vec();
        assert_eq!(
            flags.values,
            [
                one("listen", "1"),
                one("admin", "2"),
                one("mode", "14"),
                ("route", RawValue::Many(many)),
                one("settle", "8"),
                one("near", "12"),
                one("access-log", "true"),
                one("log", "10"),
                one("log-format", "13"),
                one("upstream", "3"),
                one("redis-url", "4"),
                one("store-budget", "9"),
                one("ttl", "7"),
            ]
        );
    }

    #[test]
    fn a_flag_after_the_command_wins_over_one_before_it() {
        let line = "jobcache --ttl 1s --log warn check --ttl 2s";
        let Ok((flags, Some(Command::Check(_)))) = parts(line) else { panic!("not a check") };
        assert_eq!(flags.values, [one("ttl", "2s"), one("log", "warn"), one("ttl", "1s")]);
    }

    #[test]
    fn the_access_log_can_be_turned_off() {
        let Ok((flags, None)) = parts("jobcache --access-log=false") else { panic!("usage") };
        assert_eq!(flags.values, [one("access-log", "false")]);
    }

    #[test]
    fn flags_before_demo_are_refused() {
        assert!(parts("jobcache --ttl 1s demo").is_err());
        assert!(matches!(
            parts("jobcache demo --pollers 3"),
            Ok((_, Some(Command::Demo(demo::Args { pollers: 3, .. }))))
        ));
    }

    #[test]
    fn help_fits_a_terminal_of_100_columns() {
        let mut all = Cli::command();
        all.build();
        let commands = all.get_subcommands().cloned().chain([Cli::command()]);
        for mut command in commands.collect::<Vec<_>>() {
            let help = command.render_long_help().to_string();
            let long = help.lines().find(|line| line.chars().count() > 100);
            assert_eq!(long, None, "{}", command.get_name());
        }
    }

    #[test]
    fn help_tells_default_and_variable_of_each_flag() {
        let help = Cli::command().render_help().to_string();
        // Lines are broken where there is no room.
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for text in ["[default: 127.0.0.1:8080] [env: JOBCACHE_LISTEN]", "[env: JOBCACHE_CONFIG]"] {
            assert!(help.contains(text), "{help}");
        }
    }
}
