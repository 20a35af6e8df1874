//! From the four sources to one checked configuration.

use std::{
    fmt, fs,
    io::{self, Read},
    net::SocketAddr,
};

use super::{
    Config, constraints, env, file,
    invalidate_rules::InvalidateRule,
    setting_spec::{RawValue, SETTINGS, Setter, SettingSpec, setting},
};

/// No configuration and no secret is larger; keeps a wrong path (`/dev/zero`) from eating memory.
const MAX_FILE: u64 = 1 << 20;

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// The configuration file.
    pub config: Option<String>,
    /// Flags without their dashes, and what they were given; of two with one name the first wins.
    pub values: Vec<(&'static str, RawValue)>,
}

/// A configuration and what its loading brought to light.
#[derive(Clone, Debug)]
pub struct LoadedConfig {
    /// The configuration.
    pub config: Config,
    /// Things an operator should look at, one sentence each.
    pub warnings: Vec<String>,
    pub(super) settings: LayeredSettings,
    /// What the file says and something else wins over.
    pub(super) overridden: Vec<EffectiveSetting>,
}

/// Why a configuration was refused: one line for each mistake, without secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct InvalidConfig {
    /// What is wrong and how to mend it.
    pub problems: Vec<String>,
    /// What might be behind it, such as a misspelt variable.
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
        Self::load_over(&[], flags, env)
    }

    /// The same for a process that was passed sockets: the addresses of these knobs are theirs,
    /// whatever is configured, and are judged as if they were.
    pub fn load_over(
        sockets: &[(&'static str, SocketAddr)],
        flags: Flags,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<LoadedConfig, InvalidConfig> {
        let mut problems = Vec::new();
        let env = env::read(env, &mut problems);
        let file = match flags.config.map(|path| (path, "--config")).or(env.config) {
            Some((path, from)) => file::read(&path, from, &mut problems),
            None => file::ConfigFile::default(),
        };
        let flags = flags.values.into_iter().filter_map(|(name, value)| {
            let knob = SETTINGS.iter().find(|knob| knob.flag == Some(name))?;
            Some(EffectiveSetting { knob, value, origin: Origin::Flag(name) })
        });
        let sockets = sockets.iter().filter_map(|(key, address)| {
            let value = RawValue::One(address.to_string());
            Some(EffectiveSetting { knob: setting(key)?, value, origin: Origin::Socket })
        });
        let of_file: Vec<_> = file.settings.clone();
        let settings =
            LayeredSettings::merge(sockets.chain(flags).chain(env.settings).chain(file.settings));
        let wins = |setting: &EffectiveSetting| {
            let kept = settings.of(setting.knob.key);
            kept.is_none_or(|kept| matches!(kept.origin, Origin::File(_)))
        };
        let overridden = of_file.into_iter().filter(|setting| !wins(setting)).collect();
        let mut config = settings.parse(&mut problems);
        config.invalidate = file.rules;
        config.traces = env.traces;
        if problems.is_empty() {
            Ok(LoadedConfig { config, warnings: env.warnings, settings, overridden })
        } else {
            Err(InvalidConfig { problems, warnings: env.warnings })
        }
    }
}

/// A configuration that was made, not read: as if every knob had been left alone.
impl From<Config> for LoadedConfig {
    fn from(config: Config) -> Self {
        let (settings, overridden) = (LayeredSettings(Vec::new()), Vec::new());
        Self { config, warnings: Vec::new(), settings, overridden }
    }
}

impl LoadedConfig {
    /// The effective configuration as a file, secrets hidden, each given value with where it came
    /// from.
    pub fn to_toml(&self) -> String {
        let line = |knob: &'static SettingSpec| match self.settings.of(knob.key) {
            Some(setting) => format!("{:<44} # {}\n", setting.assignment(), setting.origin),
            None if knob.default.is_empty() => format!("# {} is not set\n", knob.key),
            None => format!("{} = {}\n", knob.key, knob.split(knob.default)),
        };
        SETTINGS
            .iter()
            .map(line)
            .chain(self.config.invalidate.iter().map(InvalidateRule::to_toml))
            .collect()
    }
}

/// One value of one knob.
#[derive(Clone)]
pub(super) struct EffectiveSetting {
    pub(super) knob: &'static SettingSpec,
    pub(super) value: RawValue,
    pub(super) origin: Origin,
}

/// Where a value came from.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// One that the service manager has passed.
    Socket,
    Flag(&'static str),
    Env(String),
    /// The file that the variable names.
    EnvFile {
        variable: String,
        path: String,
    },
    /// Path and line.
    File(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket => f.write_str("a socket of the service manager"),
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Env(variable) => f.write_str(variable),
            Self::EnvFile { variable, path } => write!(f, "{path}, named by {variable}"),
            Self::File(at) => f.write_str(at),
        }
    }
}

impl EffectiveSetting {
    /// `key = value`, fit for logs.
    fn assignment(&self) -> String {
        format!("{} = {}", self.knob.key, self.knob.show(&self.value))
    }

    fn problem(&self, why: &str) -> String {
        let default = match self.knob.set {
            Setter::One(_) if !self.knob.default.is_empty() => {
                format!("; the default is {}", self.knob.default)
            }
            _ => String::new(),
        };
        format!("{} (from {}): {why}{default}", self.assignment(), self.origin)
    }
}

/// Secrets stay hidden here as well.
impl fmt::Debug for EffectiveSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (from {})", self.assignment(), self.origin)
    }
}

/// At most one setting a knob.
#[derive(Clone, Debug)]
pub(super) struct LayeredSettings(Vec<EffectiveSetting>);

impl LayeredSettings {
    /// Keeps the first, that is the strongest, setting of each knob.
    fn merge(all: impl Iterator<Item = EffectiveSetting>) -> Self {
        let mut kept = Self(Vec::new());
        for setting in all {
            if kept.of(setting.knob.key).is_none() {
                kept.0.push(setting);
            }
        }
        kept
    }

    /// What was given for a knob.
    pub(super) fn of(&self, key: &str) -> Option<&EffectiveSetting> {
        self.0.iter().find(|setting| setting.knob.key == key)
    }

    /// `key = value (from origin)`, or that it is the default.
    pub(super) fn describe(&self, key: &'static str) -> String {
        let default = || super::setting(key).map_or("", |knob| knob.default);
        self.of(key).map_or_else(
            || format!("{key} = {:?} (the default)", default()),
            |setting| format!("{setting:?}"),
        )
    }

    fn parse(&self, problems: &mut Vec<String>) -> Config {
        // With a misspelt key the knobs would only seem not to fit together.
        let readable = problems.is_empty();
        let mut config = Config::default();
        let mut failed = Vec::new();
        for setting in &self.0 {
            if let Err(why) = setting.knob.apply(&mut config, &setting.value) {
                problems.push(setting.problem(&why));
                failed.push(setting.knob.key);
            }
        }
        if readable {
            constraints::all(&config, self, &failed, problems);
        }
        config
    }
}

/// The text of a small file.
pub(super) fn read_text(path: &str) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        let error = format!("it is larger than {MAX_FILE} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, error));
    }
    Ok(text)
}
