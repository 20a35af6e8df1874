//! What differs between two configurations, key by key.

use super::{
    Config, LoadedConfig,
    invalidate_rules::{self, InvalidateRule},
    load::EffectiveSetting,
    setting_spec::{ReloadClass, SETTINGS, SettingSpec},
};

/// A key that has another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingChange {
    /// As in the file, with dots.
    pub key: &'static str,
    /// What it was, as TOML and fit for logs.
    pub old: String,
    /// What it is.
    pub new: String,
    /// When that comes into force.
    pub applies: ReloadClass,
}

/// A key that has another value in the file, which a flag or variable wins over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverriddenChange {
    /// As in the file, with dots.
    pub key: &'static str,
    /// What the file says, as TOML and fit for logs.
    pub file: String,
    /// What wins.
    pub by: String,
}

const UNSET: &str = "unset";
/// Of a value that is shown in part or not at all.
const HIDDEN: &str = " (what is not shown differs)";

impl LoadedConfig {
    /// What the file says otherwise than it did for `old`, in vain.
    pub fn overridden_changes(&self, old: &Self) -> Vec<OverriddenChange> {
        let told = |setting: &EffectiveSetting| {
            let knob = setting.knob;
            let before = old.overridden.iter().find(|old| old.knob.key == knob.key);
            let is_new = alone(Some(setting)) != alone(before);
            let by = self.settings.of(knob.key)?.origin.to_string();
            is_new.then(|| OverriddenChange { key: knob.key, file: knob.show(&setting.value), by })
        };
        self.overridden.iter().filter_map(told).collect()
    }

    /// What `new` has otherwise. Values count as they are meant: `60s` is `1m`, and one that says the
    /// default is no other than none.
    pub fn changes(&self, new: &Self) -> Vec<SettingChange> {
        let changed = SETTINGS.iter().filter_map(|knob| {
            let (old, new) = (self.settings.of(knob.key), new.settings.of(knob.key));
            (alone(old) != alone(new)).then(|| change(knob, old, new))
        });
        let (old, new) = (&self.config.invalidate, &new.config.invalidate);
        let rules = (old != new).then(|| SettingChange {
            key: invalidate_rules::KEY,
            old: inline(old),
            new: inline(new),
            applies: ReloadClass::OnReload,
        });
        changed.chain(rules).collect()
    }
}

/// The defaults with nothing but this set.
fn alone(setting: Option<&EffectiveSetting>) -> Config {
    let mut config = Config::default();
    if let Some(setting) = setting {
        // What cannot be set has been refused when it was loaded.
        let _ = setting.knob.apply(&mut config, &setting.value);
    }
    config
}

fn change(
    knob: &SettingSpec,
    old: Option<&EffectiveSetting>,
    new: Option<&EffectiveSetting>,
) -> SettingChange {
    let (old, mut new) = (shown(knob, old), shown(knob, new));
    if old == new {
        new.push_str(HIDDEN);
    }
    SettingChange { key: knob.key, old, new, applies: knob.applies }
}

fn shown(knob: &SettingSpec, setting: Option<&EffectiveSetting>) -> String {
    match setting {
        Some(setting) => knob.show(&setting.value),
        None if knob.default.is_empty() => UNSET.to_owned(),
        None => knob.split(knob.default).to_string(),
    }
}

fn inline(rules: &[InvalidateRule]) -> String {
    if rules.is_empty() {
        return UNSET.to_owned();
    }
    let rules: Vec<_> = rules.iter().map(InvalidateRule::to_inline).collect();
    format!("[{}]", rules.join(", "))
}
