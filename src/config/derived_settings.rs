//! Derived settings: changes to the values that the sources give, and additions to them.
//!
//! Variables in addresses are replaced, options of the store's URL become settings, and defaults are
//! lowered until they fit the memory limit. An addition is a setting like any other, with an origin, so
//! that messages, `jobcache check` and reloads need to know nothing about it. A value that a source gives
//! always wins.

use std::{collections::BTreeMap, fs::File};

use super::{
    MemoryLimit, RawValue,
    address::unquoted,
    parse::{number, show_bytes, size},
    setter::Setter,
    setting,
    setting_sources::{EffectiveSetting, LayeredSettings},
    store_url,
    url_options::TlsOption,
};

/// Replaces `$NAME` and `${NAME}` in addresses to listen on, for images without a shell.
pub(super) fn expand_variables(
    settings: &mut LayeredSettings,
    env: &BTreeMap<String, String>,
    problems: &mut Vec<String>,
) {
    settings.0.retain_mut(|setting| {
        let RawValue::One(text) = &setting.value else { return true };
        if !setting.spec.has_variables || !text.contains('$') {
            return true;
        }
        match expanded(text, env) {
            Ok(address) if address == *text => {}
            Ok(address) => {
                setting.origin = format!("{} as {text:?}", setting.origin);
                setting.value = RawValue::One(address);
            }
            Err(why) => {
                problems.push(setting.problem(&why));
                return false;
            }
        }
        true
    });
}

fn expanded(text: &str, env: &BTreeMap<String, String>) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out += before;
        let (name, end) = if let Some(braced) = after.strip_prefix('{') {
            braced.split_once('}').ok_or("a } is missing")?
        } else {
            after.split_at(after.find(|c| !is_name(c)).unwrap_or(after.len()))
        };
        if name.is_empty() || !name.chars().all(is_name) {
            return Err(
                "a $ must be followed by the name of a variable: $NAME or ${NAME}".to_owned()
            );
        }
        let value = env.get(name).map(|value| unquoted(value)).filter(|value| !value.is_empty());
        out += value.ok_or_else(|| format!("the environment variable {name} is not set"))?;
        rest = end;
    }
    Ok(out + rest)
}

/// Adds the settings that options of the store's URL stand for, and returns warnings.
pub(super) fn add_url_options(settings: &mut LayeredSettings) -> Vec<String> {
    let Some(setting_of_url) = settings.of("store.url") else { return Vec::new() };
    let RawValue::One(text) = &setting_of_url.value else { return Vec::new() };
    let Ok((url, options)) = store_url::parse(text) else { return Vec::new() };
    let origin = setting_of_url.origin.clone();
    let mut warnings = options.warnings;
    if !url.is_tls() && !options.tls.is_empty() {
        let names: Vec<_> = options.tls.iter().map(|tls| &*tls.option).collect();
        warnings.push(format!(
            "the options {} of the URL of Redis have no effect: it does not begin with rediss://",
            names.join(", ")
        ));
    }
    let mut added = options.tls;
    let is_set = |key: &str| settings.0.iter().any(|own| are_together(own.spec.key, key));
    added.retain(|tls| url.is_tls() && !is_set(tls.key));
    warnings.extend(drop_unreadable(&mut added));
    for TlsOption { key, value, option } in added {
        let Some(spec) = setting(key) else { continue };
        let origin = format!("{option} of {origin}");
        settings.0.push(EffectiveSetting { spec, value: RawValue::One(value), origin });
    }
    warnings.iter().map(|warning| format!("{warning} (from {origin})")).collect()
}

const CERT_AND_KEY: [&str; 2] = ["store.tls.cert", "store.tls.key"];

/// Whether two settings are only used together.
fn are_together(one: &str, other: &str) -> bool {
    one == other || CERT_AND_KEY.contains(&one) && CERT_AND_KEY.contains(&other)
}

/// Drops files that cannot be read, and returns warnings: the URL is often that of another container,
/// which has the files, and jobcache has to start without them.
fn drop_unreadable(given: &mut Vec<TlsOption>) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut unreadable = Vec::new();
    for TlsOption { key, value, option } in given.iter().filter(|tls| tls.key != "store.tls.verify")
    {
        let Err(error) = File::open(value) else { continue };
        unreadable.push(*key);
        warnings.push(format!(
            "the file of the option {option} of the URL of Redis cannot be read, and is not used \
             ({error}): mount it here too, or set {key}"
        ));
    }
    given.retain(|tls| !unreadable.iter().any(|key| are_together(key, tls.key)));
    // A key alone is of no use.
    let has_cert = given.iter().any(|tls| tls.key == "store.tls.cert");
    given.retain(|tls| tls.key != "store.tls.key" || has_cert);
    warnings
}

/// Settings that bound memory, and the part of the limit that their default takes at most. Together
/// they take half of it at most, as `near_max_bytes` and `store.memory_max` are never in use together.
const SIZES: [(&str, usize); 4] = [
    ("near_max_bytes", 4),
    ("store.memory_max", 4),
    ("max_captured", 8),
    // The bodies of purges have as much again.
    ("max_inspected", 24),
];

/// Settings that bound numbers of things that take about 24 KiB each: open connections, and requests that
/// wait.
const COUNTS: [&str; 2] = ["server.max_connections", "server.max_requests"];
/// Part of the limit for one of them, so that all of them take half of it.
const BYTES_EACH: usize = 48 << 10;

/// Adds lower values for the defaults that are too large for the memory limit, and returns them as
/// `key = value`.
pub(super) fn add_memory_limits(
    settings: &mut LayeredSettings,
    limit: Option<&MemoryLimit>,
) -> Vec<String> {
    let Some(limit) = limit else { return Vec::new() };
    let memory_url = RawValue::One("memory://".to_owned());
    let is_memory = settings.of("store.url").is_some_and(|given| given.value == memory_url);
    // A configuration in which a body does not fit into `memory://` is refused.
    let body = amount(settings, "max_body").unwrap_or(0);
    let sizes = SIZES.into_iter().filter(|(key, _)| is_memory || *key != "store.memory_max");
    let sizes = sizes.map(|(key, part)| {
        let least = if key == "store.memory_max" { body } else { 0 };
        let share = rounded(limit.bytes / part).max(least);
        (key, share, format!("1/{part} of the memory limit, {limit}"))
    });
    let counts = COUNTS.map(|key| {
        let origin =
            format!("one for each {} of the memory limit, {limit}", show_bytes(BYTES_EACH));
        (key, limit.bytes / BYTES_EACH, origin)
    });
    let lower = sizes.chain(counts).filter_map(|(key, share, origin)| {
        let spec = setting(key).filter(|_| settings.of(key).is_none())?;
        let (least, text): (_, fn(usize) -> String) = match spec.setter {
            Setter::Size((least, _), _) => (least, show_bytes),
            Setter::Number((least, _), _) => (least, |number| number.to_string()),
            _ => return None,
        };
        let share = share.max(least);
        let value = RawValue::One(text(share));
        (share < amount(settings, key)?).then_some(EffectiveSetting { spec, value, origin })
    });
    let lower: Vec<_> = lower.collect();
    let lowered = lower.iter().map(EffectiveSetting::assignment).collect();
    settings.0.extend(lower);
    lowered
}

/// Part of the memory limit for a client that is held. Each takes 16 KiB at most, so all of them take a
/// sixth of it, and no more of them fit than half of the connections that do.
const BYTES_HELD: usize = 2 * BYTES_EACH;

/// Adds the default of `push.max_waiting` where it follows from other settings or the memory limit.
pub(super) fn add_push_limit(settings: &mut LayeredSettings, limit: Option<&MemoryLimit>) {
    let key = "push.max_waiting";
    let Some(spec) = setting(key).filter(|_| settings.of(key).is_none()) else { return };
    let (Some(connections), Setter::Number((least, _), _)) =
        (amount(settings, "server.max_connections"), spec.setter)
    else {
        return;
    };
    let half = (connections / 2, format!("half of server.max_connections, {connections}"));
    let share = limit.map(|limit| {
        let each = show_bytes(BYTES_HELD);
        (limit.bytes / BYTES_HELD, format!("one for each {each} of the memory limit, {limit}"))
    });
    let (number, origin) = match share {
        Some(share) if share.0 < half.0 => share,
        _ => half,
    };
    let text = number.max(least).to_string();
    if text != spec.default {
        settings.0.push(EffectiveSetting { spec, value: RawValue::One(text), origin });
    }
}

/// Rounds down to whole MiB, so that people can read the value.
fn rounded(bytes: usize) -> usize {
    const MIB: usize = 1 << 20;
    if bytes > MIB { bytes - bytes % MIB } else { bytes }
}

/// Returns the value of a size or number, given or by default.
fn amount(settings: &LayeredSettings, key: &str) -> Option<usize> {
    let spec = setting(key)?;
    let text = match settings.of(key).map(|setting| &setting.value) {
        Some(RawValue::One(text)) => text,
        Some(_) => return None,
        None => spec.default,
    };
    match spec.setter {
        Setter::Size(bounds, _) => size(text, bounds).ok(),
        Setter::Number(bounds, _) => number(text, bounds).ok(),
        _ => None,
    }
}
