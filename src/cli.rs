//! The command line: flags are strings here, and `config` judges them with all other sources.

pub(crate) mod check;
pub(crate) mod healthcheck;

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, error::ErrorKind};
use jobcache::{
    config::{Flags, Value, knob},
    demo,
};

/// Caches job status polls in front of an unchanged backend.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 110, after_help = AFTER, subcommand_help_heading = "Commands")]
pub(crate) struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

const AFTER: &str = "\
A flag wins over the environment, the environment over the file. There are more knobs than flags:
config/jobcache.toml has them all, with their variables. Secrets have no flag, as others could read
it: set JOBCACHE_WEBHOOK_SECRET, or JOBCACHE_WEBHOOK_SECRET_FILE and JOBCACHE_REDIS_URL_FILE.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the cache at work between pollers and a sample API, without any set-up
    Demo(demo::Args),
    /// Check the configuration, print it, and try Redis and the upstream
    Check(Settings),
    /// Ask a running jobcache whether it is alive, by its admin address
    Healthcheck(Settings),
}

/// Flags that set knobs.
#[derive(Debug, Default, PartialEq, Eq, Args)]
struct Settings {
    #[arg(long, value_name = "ADDR", help = help("listen", "Where clients connect"))]
    listen: Option<String>,
    #[arg(long, value_name = "ADDR", help = help("admin", "Where the webhook and operators connect"))]
    admin: Option<String>,
    #[arg(long, value_name = "URL", help = help("upstream.url", "The backend"))]
    upstream: Option<String>,
    #[arg(long, value_name = "URL", help = help("store.url", "Redis, or memory://"))]
    redis_url: Option<String>,
    #[arg(long, value_name = "PATH", help = help("routes", "Job path, may repeat"))]
    route: Vec<String>,
    #[arg(long, value_name = "TIME", help = help("ttl.default", "How long an entry is kept"))]
    ttl: Option<String>,
    #[arg(long, value_name = "TIME", help = help("settle", "No caching for a job after its write"))]
    settle: Option<String>,
    #[arg(long, value_name = "TIME", help = help("store.budget", "What Redis may cost a request"))]
    store_budget: Option<String>,
    #[arg(long, value_name = "MODE", help = help("mode", "Whether the cache answers: on, shadow or off"))]
    mode: Option<String>,
    #[arg(long, value_name = "MODE", help = help("near", "Layer in this process in front of Redis: strict, bounded or off"))]
    near: Option<String>,
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help = help("access_log", "Log one line a request"),
    )]
    access_log: Option<String>,
    #[arg(long, value_name = "LEVEL", help = help("log", "What to log"))]
    log: Option<String>,
    #[arg(long, value_name = "FORMAT", help = help("log_format", "How it looks: human or json"))]
    log_format: Option<String>,
    #[arg(long, value_name = "FILE", help = "Configuration file [env: JOBCACHE_CONFIG]")]
    config: Option<String>,
}

/// What to do.
#[derive(Debug)]
pub(crate) enum Task {
    Serve(Flags),
    Demo(demo::Args),
    Check(Flags),
    Healthcheck(Flags),
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
            Some(Command::Check(after)) => Task::Check(after.over(before)),
            Some(Command::Healthcheck(after)) => Task::Healthcheck(after.over(before)),
            Some(Command::Demo(demo)) if before == Settings::default() => Task::Demo(demo),
            Some(Command::Demo(_)) => {
                let why = "flags before `demo` do nothing; put those of the demo after it";
                return Err(Self::command().error(ErrorKind::ArgumentConflict, why));
            }
        })
    }
}

impl Settings {
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
            one.into_iter().filter_map(|(name, text)| Some((name, Value::One(text?)))).collect();
        if !self.route.is_empty() {
            values.push(("route", Value::Many(self.route)));
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
    let Some(knob) = knob(key) else { return what.to_owned() };
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

    fn one(name: &'static str, text: &str) -> (&'static str, Value) {
        (name, Value::One(text.to_owned()))
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
                ("route", Value::Many(many)),
            ]
        );
    }

    #[test]
    fn a_flag_after_the_command_wins_over_one_before_it() {
        let Ok(Task::Check(flags)) = task("jobcache --ttl 1s --log warn check --ttl 2s") else {
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
    fn help_tells_default_and_variable_of_each_flag() {
        let help = Cli::command().render_help().to_string();
        for text in ["[default: 127.0.0.1:8080] [env: JOBCACHE_LISTEN]", "[env: JOBCACHE_CONFIG]"] {
            assert!(help.contains(text), "{help}");
        }
    }
}
