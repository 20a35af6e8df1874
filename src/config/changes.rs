//! Differences between two loaded configurations, setting by setting.

use super::{
    Config, InvalidateRule, LoadedConfig, ReloadClass, SettingSpec, invalidate_rules,
    layers::EffectiveSetting, settings,
};

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
            let by = self.settings.of(spec.key)?.origin.to_string();
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

/// The defaults with only this setting changed.
fn alone(defaults: &Config, setting: Option<&EffectiveSetting>) -> Config {
    let mut config = defaults.clone();
    if let Some(setting) = setting {
        // Loading has applied the setting without an error.
        let _ = setting.spec.apply(&mut config, &setting.value);
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
        None => spec.split(spec.default).to_string(),
    }
}

fn inline(rules: &[InvalidateRule]) -> String {
    if rules.is_empty() {
        return UNSET.to_owned();
    }
    let rules: Vec<_> = rules.iter().map(InvalidateRule::to_inline).collect();
    format!("[{}]", rules.join(", "))
}
