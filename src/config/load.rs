//! Merges the four sources into one checked configuration, and compares two of those.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use crate::semantics::route::Routes;

use super::{
    ApiConfig, Config, InvalidateRule, MemoryLimit, RawValue, ReloadClass, RouteConfig,
    SettingSpec, constraints, derived_settings,
    file_tables::FileTable,
    setting,
    setting_sources::{self, EffectiveSetting, LayeredSettings},
    settings,
};

/// Everything that the command line sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// The configuration file.
    pub config: Option<String>,
    /// Flags without their dashes, with their values; of two with the same name the first wins.
    pub values: Vec<(&'static str, RawValue)>,
}

/// Facts about this process that replace settings or defaults. They do not change while it runs.
#[derive(Clone, Debug, Default)]
pub struct ProcessFacts {
    /// Sockets that it was passed, with the keys of their settings: their addresses replace the
    /// configured values, and are checked as if they had been configured.
    pub sockets: Vec<(&'static str, SocketAddr)>,
    /// The memory limit, which defaults have to fit.
    pub memory: Option<MemoryLimit>,
}

/// A configuration with the origin of its values.
#[derive(Clone, Debug)]
pub struct LoadedConfig {
    /// The configuration.
    pub config: Config,
    /// Warnings for the operator, one sentence each.
    pub warnings: Vec<String>,
    /// Defaults that are lower because of the memory limit, as `key = value`.
    pub lowered: Vec<String>,
    pub(super) settings: LayeredSettings,
    /// Values of the file that a stronger source overrides.
    pub(super) overridden: Vec<EffectiveSetting>,
}

/// A configuration that was refused: one line for each mistake, without secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct InvalidConfig {
    /// Mistakes and how to mend them.
    pub problems: Vec<String>,
    /// Possible causes, such as a misspelt variable.
    pub warnings: Vec<String>,
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.problems.len() == 1 { "" } else { "s" };
        write!(f, "the configuration has {} mistake{plural}", self.problems.len())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))?;
        self.warnings.iter().try_for_each(|warning| write!(f, "\n  warning: {warning}"))
    }
}

impl Config {
    /// Merges flags, environment (names and values) and the file that one of them names.
    pub fn load(
        flags: Flags,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<LoadedConfig, InvalidConfig> {
        Self::load_with(&ProcessFacts::default(), flags, env)
    }

    /// The same for a process of which something is known.
    pub fn load_with(
        process: &ProcessFacts,
        flags: Flags,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<LoadedConfig, InvalidConfig> {
        let mut problems = Vec::new();
        let variables: BTreeMap<_, _> = env.into_iter().collect();
        let env = setting_sources::read_env(variables.clone(), &mut problems);
        let mut warnings = env.warnings;
        let file = match flags.config.map(|path| (path, "--config")).or(env.config) {
            Some((path, from)) => setting_sources::read_file(&path, from, &mut problems),
            None => setting_sources::ConfigFile::default(),
        };
        let strong = sockets(process).chain(of_flags(flags.values)).chain(env.settings);
        let mut settings = LayeredSettings::merge(strong);
        let is_overridden = |of_file: &EffectiveSetting| settings.of(of_file.spec.key).is_some();
        let (overridden, in_force): (Vec<_>, Vec<_>) =
            file.settings.into_iter().partition(is_overridden);
        settings.0.extend(in_force);
        derived_settings::expand_variables(&mut settings, &variables, &mut problems);
        warnings.extend(derived_settings::add_url_options(&mut settings));
        let lowered = derived_settings::add_memory_limits(&mut settings, process.memory.as_ref());
        derived_settings::add_push_limit(&mut settings, process.memory.as_ref());
        let mut config = parse(&settings, (file.routes, file.rules), &mut problems);
        config.traces = env.traces;
        if problems.is_empty() {
            warnings.extend(constraints::warning(&config));
            Ok(LoadedConfig { config, warnings, lowered, settings, overridden })
        } else {
            Err(InvalidConfig { problems, warnings })
        }
    }
}

fn of_flags(values: Vec<(&'static str, RawValue)>) -> impl Iterator<Item = EffectiveSetting> {
    values.into_iter().filter_map(|(name, value)| {
        let spec = settings().find(|spec| spec.flag.is_some_and(|flag| flag.name == name))?;
        Some(EffectiveSetting::given(spec, value, format!("--{name}")))
    })
}

fn sockets(process: &ProcessFacts) -> impl Iterator<Item = EffectiveSetting> {
    process.sockets.iter().filter_map(|(key, address)| {
        let value = RawValue::One(address.to_string());
        let origin = "a socket of the service manager".to_owned();
        Some(EffectiveSetting { spec: setting(key)?, value, origin })
    })
}

/// A configuration that code has built: no value has an origin.
impl From<Config> for LoadedConfig {
    fn from(config: Config) -> Self {
        let settings = LayeredSettings(Vec::new());
        let overridden = Vec::new();
        Self { config, warnings: Vec::new(), lowered: Vec::new(), settings, overridden }
    }
}

impl LoadedConfig {
    /// The effective configuration as a file, with secrets hidden and the origin of each given value.
    pub fn to_toml(&self) -> String {
        // Then the default of `routes` does not count.
        let has_tables = !self.config.api.tables.is_empty();
        let line = |spec: &'static SettingSpec| match self.settings.of(spec.key) {
            Some(setting) => format!("{:<44} # {}\n", setting.assignment(), setting.origin),
            None if spec.default.is_empty() || spec.key == "routes" && has_tables => {
                format!("# {} is not set\n", spec.key)
            }
            None => format!("{} = {}\n", spec.key, spec.setter.split(spec.default)),
        };
        let ApiConfig { tables, invalidate, .. } = &self.config.api;
        let routes = tables.iter().map(FileTable::to_toml);
        let rules = invalidate.iter().map(FileTable::to_toml);
        settings().map(line).chain(routes).chain(rules).collect()
    }
}

/// Parses the value of each setting.
fn parse(
    settings: &LayeredSettings,
    (routes, rules): (Vec<RouteConfig>, Vec<InvalidateRule>),
    problems: &mut Vec<String>,
) -> Config {
    // If a key is misspelt, settings would only seem to contradict each other.
    let readable = problems.is_empty();
    let mut config = Config::default();
    let mut failed = Vec::new();
    for setting in &settings.0 {
        if let Err(why) = setting.spec.setter.apply(&mut config, &setting.value) {
            problems.push(setting.problem(&why));
            failed.push(setting.spec.key);
        }
    }
    if !routes.is_empty() && settings.of("routes").is_none() {
        config.api.paths.clear();
    }
    let own_prefix = |route: RouteConfig| RouteConfig {
        prefix: route.prefix.filter(|prefix| *prefix != config.store.prefix),
        ..route
    };
    config.api.tables = routes.into_iter().map(own_prefix).collect();
    config.api.invalidate = rules;
    if readable {
        constraints::check(&config, settings, &failed, problems);
    }
    if problems.is_empty() {
        problems.extend(Routes::new(&config.api).err().map(|error| error.to_string()));
    }
    config
}

/// A setting that has another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingChange {
    /// Dotted key as in the file.
    pub key: &'static str,
    /// Old value as TOML, without secrets.
    pub old: String,
    /// New value, likewise.
    pub new: String,
    /// When the new value comes into force.
    pub applies: ReloadClass,
}

/// A setting that has another value in the file, without effect because a flag or variable wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverriddenChange {
    /// Dotted key as in the file.
    pub key: &'static str,
    /// New value in the file as TOML, without secrets.
    pub file: String,
    /// Origin of the value that wins.
    pub by: String,
}

const UNSET: &str = "unset";
/// Appended where a value is hidden, in part or as a whole.
const HIDDEN_DIFFERENCE: &str = " (what is not shown differs)";

impl LoadedConfig {
    /// Values of the file that differ from those it had for `old`, but are overridden.
    pub fn overridden_changes(&self, old: &Self) -> Vec<OverriddenChange> {
        let defaults = Config::default();
        let change = |setting: &EffectiveSetting| {
            let spec = setting.spec;
            let before = old.overridden.iter().find(|old| old.spec.key == spec.key);
            let is_new = alone(&defaults, Some(setting)) != alone(&defaults, before);
            let by = self.settings.of(spec.key)?.origin.clone();
            is_new.then(|| OverriddenChange { key: spec.key, file: spec.show(&setting.value), by })
        };
        self.overridden.iter().filter_map(change).collect()
    }

    /// Settings that have another value in `new`. Values are compared by their meaning: `60s` equals
    /// `1m`, and a value that equals the default equals none.
    pub fn changes(&self, new: &Self) -> Vec<SettingChange> {
        let defaults = Config::default();
        let changed = settings().filter_map(|spec| {
            let (old, new) = (self.settings.of(spec.key), new.settings.of(spec.key));
            (alone(&defaults, old) != alone(&defaults, new)).then(|| change(spec, old, new))
        });
        let (old, new) = (&self.config.api, &new.config.api);
        // The store follows the keys of each prefix from its start.
        let is_same_store = old.prefixes() == new.prefixes();
        let applies = if is_same_store { ReloadClass::OnReload } else { ReloadClass::AtStart };
        let routes = change_of_tables(&old.tables, &new.tables, applies);
        let rules = change_of_tables(&old.invalidate, &new.invalidate, ReloadClass::OnReload);
        changed.chain(routes).chain(rules).collect()
    }
}

/// The defaults with only this setting changed.
fn alone(defaults: &Config, setting: Option<&EffectiveSetting>) -> Config {
    let mut config = defaults.clone();
    if let Some(setting) = setting {
        // Loading has applied the setting without an error.
        let _ = setting.spec.setter.apply(&mut config, &setting.value);
    }
    config
}

fn change(
    spec: &SettingSpec,
    old: Option<&EffectiveSetting>,
    new: Option<&EffectiveSetting>,
) -> SettingChange {
    let old = shown(spec, old);
    let mut new = shown(spec, new);
    if old == new {
        new.push_str(HIDDEN_DIFFERENCE);
    }
    SettingChange { key: spec.key, old, new, applies: spec.reload }
}

fn shown(spec: &SettingSpec, setting: Option<&EffectiveSetting>) -> String {
    match setting {
        Some(setting) => spec.show(&setting.value),
        None if spec.default.is_empty() => UNSET.to_owned(),
        None => spec.setter.split(spec.default).to_string(),
    }
}

fn change_of_tables<T: FileTable + PartialEq>(
    old: &[T],
    new: &[T],
    applies: ReloadClass,
) -> Option<SettingChange> {
    let shown = |tables: &[T]| {
        let tables: Vec<_> = tables.iter().map(FileTable::to_inline).collect();
        if tables.is_empty() { UNSET.to_owned() } else { format!("[{}]", tables.join(", ")) }
    };
    let change = || SettingChange { key: T::SPEC.key, old: shown(old), new: shown(new), applies };
    (old != new).then(change)
}
