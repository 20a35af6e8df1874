//! The flags of settings, made from the table of settings.
//!
//! A flag takes any text: `config` checks it together with the values of all other sources.

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueHint,
    builder::PossibleValuesParser,
};
use jobcache::config::{Flags, RawValue, SettingSpec, settings};

const CONFIG: &str = "config";

/// The configuration file and the flags of settings.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SettingFlags(Flags);

impl SettingFlags {
    pub(super) fn flags(self) -> Flags {
        self.0
    }

    /// These flags together with `weaker` ones, which lose where both are given.
    pub(super) fn over(self, weaker: Self) -> Flags {
        let Flags { config, mut values } = self.0;
        values.extend(weaker.0.values);
        Flags { config: config.or(weaker.0.config), values }
    }
}

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_hint(ValueHint::FilePath)
            .help_heading("Configuration")
            .help("Configuration file (TOML) [env: JOBCACHE_CONFIG]");
        command.arg(config).args(settings().filter_map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let config = matches.get_one::<String>(CONFIG).cloned();
        let values = settings().filter_map(|spec| Some((spec.flag?.name, value(spec, matches)?)));
        self.0 = Flags { config, values: values.collect() };
        Ok(())
    }
}

fn value(spec: &SettingSpec, matches: &ArgMatches) -> Option<RawValue> {
    let name = spec.flag?.name;
    if spec.is_list() {
        let items = matches.get_many::<String>(name)?;
        return Some(RawValue::Many(items.cloned().collect()));
    }
    matches.get_one::<String>(name).map(|text| spec.split(text))
}

fn arg(spec: &'static SettingSpec) -> Option<Arg> {
    let flag = spec.flag?;
    let arg = Arg::new(flag.name)
        .long(flag.name)
        .value_name(flag.value_name)
        .help_heading(flag.heading)
        .help(help(spec))
        .action(if spec.is_list() { ArgAction::Append } else { ArgAction::Set });
    Some(if spec.is_switch() {
        arg.num_args(0..=1).require_equals(true).default_missing_value("true")
    } else {
        arg
    })
}

/// The sentence of the setting with its default and its variable, for `--help`.
fn help(spec: &SettingSpec) -> String {
    let what = spec.help.trim_end_matches('.').replace('`', "");
    let choices =
        if spec.choices().is_empty() { String::new() } else { format!(": {}", spec.limits()) };
    let repeats = if spec.is_list() { "; may repeat" } else { "" };
    let env = spec.variables().swap_remove(0);
    let default = if spec.default.is_empty() {
        spec.unset.to_owned()
    } else {
        spec.default.replace(',', " ")
    };
    format!("{what}{choices}{repeats} [default: {default}] [env: {env}]")
}

/// Adds the words that a flag accepts, for completions. Only `config` checks them, so that a wrong word
/// in a flag gets the same message as one in the file.
pub(super) fn with_choices(command: Command) -> Command {
    let flags = settings().filter_map(|spec| Some((spec.flag?.name, spec.choices())));
    let command =
        flags.filter(|(_, words)| !words.is_empty()).fold(command, |command, (name, words)| {
            if command.get_arguments().all(|arg| arg.get_id() != name) {
                return command;
            }
            command.mut_arg(name, |arg| arg.value_parser(PossibleValuesParser::new(words)))
        });
    command.mut_subcommands(with_choices)
}
