//! The values that the sources give, each with its origin, and the strongest of them.

use std::fmt;

use super::{RawValue, SettingSpec, setting};

/// A setting with its value and the origin of the value.
#[derive(Clone)]
pub(super) struct EffectiveSetting {
    pub(super) spec: &'static SettingSpec,
    pub(super) value: RawValue,
    pub(super) origin: Origin,
}

/// Origin of a value.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// A socket that the service manager has passed.
    Socket,
    Flag(&'static str),
    Env(String),
    /// A file that the variable names.
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
    /// `key = value`, without secrets.
    pub(super) fn assignment(&self) -> String {
        format!("{} = {}", self.spec.key, self.spec.show(&self.value))
    }

    pub(super) fn problem(&self, why: &str) -> String {
        // The default of a list is too long for a message.
        let default = if self.spec.is_list() || self.spec.default.is_empty() {
            String::new()
        } else {
            format!("; the default is {}", self.spec.default)
        };
        format!("{} (from {}): {why}{default}", self.assignment(), self.origin)
    }
}

/// Secrets stay hidden here too.
impl fmt::Debug for EffectiveSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (from {})", self.assignment(), self.origin)
    }
}

/// The strongest value of each setting that any source gives.
#[derive(Clone, Debug)]
pub(super) struct LayeredSettings(pub(super) Vec<EffectiveSetting>);

impl LayeredSettings {
    /// Keeps the first, that is the strongest, value of each setting.
    pub(super) fn merge(all: impl Iterator<Item = EffectiveSetting>) -> Self {
        let mut kept = Self(Vec::new());
        for setting in all {
            if kept.of(setting.spec.key).is_none() {
                kept.0.push(setting);
            }
        }
        kept
    }

    /// The value that a source gives for the setting `key`.
    pub(super) fn of(&self, key: &str) -> Option<&EffectiveSetting> {
        self.0.iter().find(|setting| setting.spec.key == key)
    }

    /// `key = value (from origin)`, or that it is the default.
    pub(super) fn describe(&self, key: &'static str) -> String {
        let default = || setting(key).map_or("", |spec| spec.default);
        self.of(key).map_or_else(
            || format!("{key} = {:?} (the default)", default()),
            |setting| format!("{setting:?}"),
        )
    }
}
