//! The command line: flags are strings here, and `config` judges them with all other sources.

pub(crate) mod check;
pub(crate) mod docs;
pub(crate) mod healthcheck;

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueHint, error::ErrorKind};
use clap_complete::Shell;
use jobcache::{
    config::{Flags, RawValue, setting},
    demo,
};

/// Caches job status polls in front of an unchanged backend.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100, after_help = AFTER, subcommand_help_heading = "Commands")]
pub(crate) struct Cli {
    #[command(flatten)]
    settings: SettingFlags,
    #[command(subcommand)]
    command: Option<Command>,
}

const AFTER: &str = "\
Without a command it serves. A flag wins over its variable, that over the file. TIME has a unit: 50ms,
5s, 5m. There are more settings than flags: `jobcache check` lists them as they are in force, and
`jobcache man | man -l -` explains them. Secrets have no flag, as others could read it: set
JOBCACHE_WEBHOOK_SECRET, or JOBCACHE_WEBHOOK_SECRET_FILE and JOBCACHE_REDIS_URL_FILE.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the cache at work between pollers and a sample API, without any set-up
    Demo(demo::Args),
    /// Check the configuration, print it, and try Redis and the backend
    Check(Checked),
    /// Ask a running jobcache whether it is alive, by its admin address
    Healthcheck(SettingFlags),
    /// Print the completions of a shell, such as for ~/.local/share/bash-completion/completions/jobcache
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the manual page, with every setting: jobcache man | man -l -
    Man {
        /// Of this command instead
        #[arg(value_parser = ["demo", "check", "healthcheck", "completions", "man"])]
        command: Option<String>,
    },
}

/// What `check` is given.
#[derive(Debug, Args)]
struct Checked {
    #[command(flatten)]
    settings: SettingFlags,
    /// Exit with 1 unless Redis, the backend and what warm.file and warm.list name can be reached
    #[arg(long)]
    strict: bool,
}

/// Flags that set knobs.
#[derive(Debug, Default, PartialEq, Eq, Args)]
struct SettingFlags {
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = FILE, help = "Configuration file (TOML) [env: JOBCACHE_CONFIG]")]
    config: Option<String>,
    #[arg(long, value_name = "ADDR", help_heading = PLACES, help = help("listen", "Where clients connect"))]
    listen: Option<String>,
    #[arg(long, value_name = "URL", help_heading = PLACES, help = help("upstream.url", "Your backend"))]
    upstream: Option<String>,
    #[arg(long, value_name = "URL", help_heading = PLACES, help = help("store.url", "Redis, or memory:// for one sidecar without it"))]
    redis_url: Option<String>,
    #[arg(long, value_name = "ADDR", help_heading = PLACES, help = help("admin", "Where operators and the purge webhook connect"))]
    admin: Option<String>,
    #[arg(long, value_name = "PATH", help_heading = CACHE, help = help("routes", "Path of a job; may repeat"))]
    route: Vec<String>,
    #[arg(long, value_name = "TIME", help_heading = CACHE, help = help("ttl.default", "Longest life of an entry"))]
    ttl: Option<String>,
    #[arg(long, value_name = "TIME", help_heading = CACHE, help = help("settle", "Nothing of a job is stored for so long after a write"))]
    settle: Option<String>,
    #[arg(long, value_name = "TIME", help_heading = CACHE, help = help("store.budget", "What Redis may cost a request"))]
    store_budget: Option<String>,
    #[arg(long, value_name = "MODE", help_heading = CACHE, help = help("mode", "Whether the cache answers: on, shadow (compares only) or off"))]
    mode: Option<String>,
    #[arg(long, value_name = "MODE", help_heading = CACHE, help = help("near", "Entries in this process, in front of Redis: strict, bounded or off"))]
    near: Option<String>,
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = LOGS,
        help = help("access_log", "One line a request"),
    )]
    access_log: Option<String>,
    #[arg(long, value_name = "LEVEL", help_heading = LOGS, help = help("log", "off, error, warn, info, debug or trace"))]
    log: Option<String>,
    #[arg(long, value_name = "FORMAT", help_heading = LOGS, help = help("log_format", "human, or json"))]
    log_format: Option<String>,
}

const FILE: &str = "Configuration";
const PLACES: &str = "Where things are";
const CACHE: &str = "What is cached";
const LOGS: &str = "Log";

/// What to do.
#[derive(Debug)]
pub(crate) enum Task {
    Serve(Flags),
    Demo(demo::Args),
    Check(Flags, CheckVerdict),
    Healthcheck(Flags),
    Completions(Shell),
    Manual(Option<String>),
}

/// What the verdict of `check` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CheckVerdict {
    /// The configuration alone: jobcache starts without Redis and the backend.
    Configuration,
    /// Also whether all that it names can be reached.
    Everything,
}

/// Parses the command line; ends the process on `--help`, `--version` and wrong usage.
pub(crate) fn parse() -> Task {
    Cli::parse().task().unwrap_or_else(|error| error.exit())
}

impl Cli {
    /// Flags may stand before a command as well as after it; those after it win.
    fn task(self) -> Result<Task, clap::Error> {
        let before = self.settings;
        Ok(match self.command {
            None => Task::Serve(before.flags()),
            Some(Command::Check(Checked { settings, strict })) => {
                let verdict =
                    if strict { CheckVerdict::Everything } else { CheckVerdict::Configuration };
                Task::Check(settings.over(before), verdict)
            }
            Some(Command::Completions { shell }) => Task::Completions(shell),
            Some(Command::Man { command }) => Task::Manual(command),
            Some(Command::Healthcheck(after)) => Task::Healthcheck(after.over(before)),
            Some(Command::Demo(demo)) if before == SettingFlags::default() => Task::Demo(demo),
            Some(Command::Demo(_)) => {
                let why = "flags before `demo` do nothing; put those of the demo after it";
                return Err(Self::command().error(ErrorKind::ArgumentConflict, why));
            }
        })
    }
}

impl SettingFlags {
    fn flags(self) -> Flags {
        let one = [
            ("listen", self.listen),
            ("admin", self.admin),
            ("upstream", self.upstream),
            ("redis-url", self.redis_url),
            ("ttl", self.ttl),
            ("settle", self.settle),
            ("store-budget", self.store_budget),
            ("mode", self.mode),
            ("near", self.near),
            ("access-log", self.access_log),
            ("log", self.log),
            ("log-format", self.log_format),
        ];
        let mut values: Vec<_> =
            one.into_iter().filter_map(|(name, text)| Some((name, RawValue::One(text?)))).collect();
        if !self.route.is_empty() {
            values.push(("route", RawValue::Many(self.route)));
        }
        Flags { config: self.config, values }
    }

    fn over(self, weaker: Self) -> Flags {
        let (mut flags, weaker) = (self.flags(), weaker.flags());
        flags.config = flags.config.or(weaker.config);
        flags.values.extend(weaker.values);
        flags
    }
}

/// One line of help with the default and the variable, both from the table of knobs.
fn help(key: &str, what: &str) -> String {
    let Some(knob) = setting(key) else { return what.to_owned() };
    let env = knob.env.first().copied().unwrap_or_default();
    let default = knob.default.replace(',', " ");
    format!("{what} [default: {default}] [env: {env}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn task(line: &str) -> Result<Task, clap::Error> {
        Cli::try_parse_from(line.split(' ')).and_then(Cli::task)
    }

    fn one(name: &'static str, text: &str) -> (&'static str, RawValue) {
        (name, RawValue::One(text.to_owned()))
    }

    #[test]
    fn the_command_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_a_knob_sets_that_knob() {
        let line = "jobcache --listen 1 --admin 2 --upstream 3 --redis-url 4 --route 5 --route 6 \
                    --ttl 7 --settle 8 --store-budget 9 --mode 14 --near 12 --access-log --log 10 \
                    --log-format 13 --config 11";
        let Ok(Task::Serve(flags)) = task(line) else { panic!("{line}") };
        assert_eq!(flags.config.as_deref(), Some("11"));
        let many = ["5", "6"].map(str::to_owned).to_vec();
        assert_eq!(
            flags.values,
            [
                one("listen", "1"),
                one("admin", "2"),
                one("upstream", "3"),
                one("redis-url", "4"),
                one("ttl", "7"),
                one("settle", "8"),
                one("store-budget", "9"),
                one("mode", "14"),
                one("near", "12"),
                one("access-log", "true"),
                one("log", "10"),
                one("log-format", "13"),
                ("route", RawValue::Many(many)),
            ]
        );
    }

    #[test]
    fn a_flag_after_the_command_wins_over_one_before_it() {
        let Ok(Task::Check(flags, _)) = task("jobcache --ttl 1s --log warn check --ttl 2s") else {
            panic!("not a check")
        };
        assert_eq!(flags.values, [one("ttl", "2s"), one("ttl", "1s"), one("log", "warn")]);
    }

    #[test]
    fn the_access_log_can_be_turned_off() {
        let Ok(Task::Serve(flags)) = task("jobcache --access-log=false") else { panic!("usage") };
        assert_eq!(flags.values, [one("access-log", "false")]);
    }

    #[test]
    fn flags_before_demo_are_refused() {
        assert!(task("jobcache --ttl 1s demo").is_err());
        assert!(matches!(
            task("jobcache demo --pollers 3"),
            Ok(Task::Demo(demo::Args { pollers: 3, .. }))
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
