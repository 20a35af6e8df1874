//! "Did you mean": the nearest name to one that nobody knows.

use super::setting_spec::{SETTINGS, SettingSpec};

/// The key of the file that `unknown` most likely stands for.
pub(super) fn key(unknown: &str) -> Option<&'static str> {
    let names = SETTINGS.iter().flat_map(|knob| aliases(knob).map(move |alias| (alias, knob.key)));
    nearest(unknown, names)
}

/// The key without a table that `unknown` is but for one: in a file, whatever follows `[table]` is of
/// that table.
pub(super) fn of_the_top(unknown: &str) -> Option<&'static str> {
    let (_, name) = unknown.rsplit_once('.')?;
    SETTINGS.iter().map(|knob| knob.key).find(|key| *key == name)
}

/// The variable that `unknown` most likely stands for.
pub(super) fn variable(unknown: &str) -> Option<&'static str> {
    let names = SETTINGS.iter().flat_map(|knob| {
        let derived =
            aliases(knob).map(|alias| format!("JOBCACHE_{}", snake(&alias).to_uppercase()));
        let own = knob.env.iter().map(|name| (*name).to_owned());
        own.chain(derived).filter_map(|name| Some((name, *knob.env.first()?)))
    });
    nearest(unknown, names)
}

/// What people try for a knob: its key, the key without its table's dot, and its flag.
fn aliases(knob: &SettingSpec) -> impl Iterator<Item = String> {
    [Some(knob.key.to_owned()), Some(snake(knob.key)), knob.flag.map(snake)].into_iter().flatten()
}

fn snake(name: &str) -> String {
    name.replace(['.', '-'], "_")
}

pub(super) fn nearest(
    unknown: &str,
    names: impl Iterator<Item = (String, &'static str)>,
) -> Option<&'static str> {
    // One slip in a short name, three in a long one; more is another word.
    let slips = 1 + unknown.len() / 10;
    names
        .map(|(alias, name)| (strsim::damerau_levenshtein(unknown, &alias), name))
        .filter(|(distance, _)| *distance <= slips)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
