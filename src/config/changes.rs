//! What differs between two configurations, key by key.

use super::{
    Config, Loaded,
    knob::{Applies, KNOBS, Knob},
    load::Setting,
    rules::{self, Rule},
};

/// A key that has another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// As in the file, with dots.
    pub key: &'static str,
    /// What it was, as TOML and fit for logs.
    pub old: String,
    /// What it is.
    pub new: String,
    /// When that comes into force.
    pub applies: Applies,
}

/// A key that has another value in the file, which a flag or variable wins over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overruled {
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

impl Loaded {
    /// What the file says otherwise than it did for `old`, in vain.
    pub fn overruled(&self, old: &Self) -> Vec<Overruled> {
        let told = |setting: &Setting| {
            let knob = setting.knob;
            let before = old.overruled.iter().find(|old| old.knob.key == knob.key);
            let is_new = alone(Some(setting)) != alone(before);
            let by = self.settings.of(knob.key)?.origin.to_string();
            is_new.then(|| Overruled { key: knob.key, file: knob.show(&setting.value), by })
        };
        self.overruled.iter().filter_map(told).collect()
    }

    /// What `new` has otherwise. Values count as they are meant: `60s` is `1m`, and one that says the
    /// default is no other than none.
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        let changed = KNOBS.iter().filter_map(|knob| {
            let (old, new) = (self.settings.of(knob.key), new.settings.of(knob.key));
            (alone(old) != alone(new)).then(|| change(knob, old, new))
        });
        let (old, new) = (&self.config.invalidate, &new.config.invalidate);
        let rules = (old != new).then(|| Change {
            key: rules::KEY,
            old: inline(old),
            new: inline(new),
            applies: Applies::OnReload,
        });
        changed.chain(rules).collect()
    }
}

/// The defaults with nothing but this set.
fn alone(setting: Option<&Setting>) -> Config {
    let mut config = Config::default();
    if let Some(setting) = setting {
        // What cannot be set has been refused when it was loaded.
        let _ = setting.knob.apply(&mut config, &setting.value);
    }
    config
}

fn change(knob: &Knob, old: Option<&Setting>, new: Option<&Setting>) -> Change {
    let (old, mut new) = (shown(knob, old), shown(knob, new));
    if old == new {
        new.push_str(HIDDEN);
    }
    Change { key: knob.key, old, new, applies: knob.applies }
}

fn shown(knob: &Knob, setting: Option<&Setting>) -> String {
    match setting {
        Some(setting) => knob.show(&setting.value),
        None if knob.default.is_empty() => UNSET.to_owned(),
        None => knob.split(knob.default).to_string(),
    }
}

fn inline(rules: &[Rule]) -> String {
    if rules.is_empty() {
        return UNSET.to_owned();
    }
    let rules: Vec<_> = rules.iter().map(Rule::to_inline).collect();
    format!("[{}]", rules.join(", "))
}
