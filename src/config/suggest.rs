//! "Did you mean": the known name that is nearest to an unknown one.

use super::{SettingSpec, settings};

/// The key of the file that `unknown` most likely stands for.
pub(super) fn key(unknown: &str) -> Option<&'static str> {
    let names = settings().flat_map(|spec| aliases(spec).map(move |alias| (alias, spec.key)));
    nearest(unknown, names)
}

/// The key of the top level that `unknown` equals except for its table: in a file, everything after
/// `[table]` belongs to that table.
pub(super) fn top_level_key(unknown: &str) -> Option<&'static str> {
    let (_, name) = unknown.rsplit_once('.')?;
    settings().map(|spec| spec.key).find(|key| *key == name)
}

/// The variable that `unknown` most likely stands for.
pub(super) fn variable(unknown: &str) -> Option<&'static str> {
    let names = settings().flat_map(|spec| {
        let derived =
            aliases(spec).map(|alias| format!("JOBCACHE_{}", snake(&alias).to_uppercase()));
        let own = spec.env.iter().map(|name| (*name).to_owned());
        own.chain(derived).filter_map(|name| Some((name, *spec.env.first()?)))
    });
    nearest(unknown, names)
}

/// Names that people try for a setting: its key, the key without its dots, and its flag.
fn aliases(spec: &SettingSpec) -> impl Iterator<Item = String> {
    let flag = spec.flag.map(|flag| snake(flag.name));
    [Some(spec.key.to_owned()), Some(snake(spec.key)), flag].into_iter().flatten()
}

fn snake(name: &str) -> String {
    name.replace(['.', '-'], "_")
}

pub(super) fn nearest(
    unknown: &str,
    names: impl Iterator<Item = (String, &'static str)>,
) -> Option<&'static str> {
    // One slip in a short name, three in a long one; with more it is another word.
    let slips = 1 + unknown.len() / 10;
    names
        .map(|(alias, name)| (strsim::damerau_levenshtein(unknown, &alias), name))
        .filter(|(distance, _)| *distance <= slips)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
