//! Sources of settings: the values of environment and file, each with its origin, and the strongest
//! value of each setting.
//!
//! The environment is passed in as pairs so that tests need none. A file is TOML, flattened to dotted
//! keys with their lines.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{self, Read},
};

use toml::de::{DeTable, DeValue};

use super::{
    InvalidateRule, RawValue, RouteConfig, SettingSpec, TracesConfig,
    address::unquoted,
    file_tables::{self, TableSpec},
    invalidate_rules::RULES,
    route_tables::ROUTES,
    setting, settings, traces,
};

/// A setting with its value and the origin of the value.
#[derive(Clone)]
pub(super) struct EffectiveSetting {
    pub(super) spec: &'static SettingSpec,
    pub(super) value: RawValue,
    /// Flag, variable, or path and line, for messages.
    pub(super) origin: String,
}

impl EffectiveSetting {
    /// A setting as a source gives it. Quotes and white space around an address or a URL are no part
    /// of it: `docker --env-file` keeps the quotes that a shell would remove, and people copy them.
    pub(super) fn given(spec: &'static SettingSpec, value: RawValue, origin: String) -> Self {
        let plain = |text: String| unquoted(&text).to_owned();
        let value = match value {
            RawValue::One(text) if spec.is_place() => RawValue::One(plain(text)),
            value => value,
        };
        Self { spec, value, origin }
    }

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

/// The lists of tables that only the file can hold.
pub static FILE_TABLES: [&TableSpec; 2] = [&ROUTES, &RULES];

const PREFIX: &str = "JOBCACHE_";
const CONFIG: &str = "JOBCACHE_CONFIG";

/// Everything that the environment sets.
#[derive(Default)]
pub(super) struct Environment {
    /// The configuration file and the variable that names it.
    pub(super) config: Option<(String, &'static str)>,
    /// Strongest first.
    pub(super) settings: Vec<EffectiveSetting>,
    pub(super) traces: Option<TracesConfig>,
    pub(super) warnings: Vec<String>,
}

/// Reads the variables. Empty ones count as unset: a compose file writes "not given" like that.
pub(super) fn read_env(
    env: impl IntoIterator<Item = (String, String)>,
    problems: &mut Vec<String>,
) -> Environment {
    let mut env: BTreeMap<_, _> = env.into_iter().filter(|(_, text)| !text.is_empty()).collect();
    let config = env.remove(CONFIG).map(|path| (path, CONFIG));
    let names =
        settings().flat_map(|spec| spec.variables().into_iter().map(move |name| (spec, name)));
    let mut settings = Vec::new();
    for (spec, name) in names {
        let direct = env.remove(&name);
        let by_file = spec.has_env_file.then(|| env.remove(&format!("{name}_FILE"))).flatten();
        settings.extend(from_variable(spec, &name, direct, by_file, problems));
    }
    let unknown =
        env.keys().filter(|name| name.starts_with(PREFIX) && !is_service_link(&env, name));
    let mut warnings = unknown.map(|name| warning(name)).collect();
    let traces = traces::read(&env, &mut warnings);
    Environment { config, settings, traces, warnings }
}

fn from_variable(
    spec: &'static SettingSpec,
    name: &str,
    direct: Option<String>,
    by_file: Option<String>,
    problems: &mut Vec<String>,
) -> Option<EffectiveSetting> {
    let (text, origin) = match (direct, by_file) {
        (None, None) => return None,
        (Some(text), None) => (text, name.to_owned()),
        (Some(_), Some(_)) => {
            problems.push(format!("{name} and {name}_FILE are both set: keep one of them"));
            return None;
        }
        (None, Some(path)) => {
            let variable = format!("{name}_FILE");
            let text = secret_file(&variable, &path).map_err(|why| problems.push(why)).ok()?;
            (text, format!("{path}, named by {variable}"))
        }
    };
    let text = if spec.is_place() { unquoted(&text) } else { &text };
    let is_given = !text.is_empty();
    is_given.then(|| EffectiveSetting::given(spec, spec.setter.split(text), origin))
}

/// The content of a secret's file, without the newline that most editors leave.
fn secret_file(variable: &str, path: &str) -> Result<String, String> {
    let refuse = |why: String| format!("{variable} = {path:?}: {why}");
    let text = read_text(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(refuse("the file is empty".to_owned()));
    }
    Ok(text.to_owned())
}

/// Whether Kubernetes generated the variable: a service called `jobcache` or `jobcache-admin` puts
/// `JOBCACHE_PORT`, `JOBCACHE_ADMIN_SERVICE_HOST` and the like into every container around it.
fn is_service_link(env: &BTreeMap<String, String>, name: &str) -> bool {
    let service = name.split_once("_SERVICE_").or_else(|| name.split_once("_PORT"));
    service.is_some_and(|(service, _)| env.contains_key(&format!("{service}_SERVICE_HOST")))
}

fn warning(name: &str) -> String {
    let hint = settings::nearest_variable(name).map_or_else(
        || "`jobcache man` lists all variables".to_owned(),
        |near| format!("did you mean {near}?"),
    );
    let name = name.escape_debug();
    format!("the environment variable {name} is unknown and ignored; {hint}")
}

/// No configuration and no secret is larger. It keeps a wrong path (`/dev/zero`) from filling memory.
const MAX_FILE: u64 = 1 << 20;

/// Everything that a file sets.
#[derive(Default)]
pub(super) struct ConfigFile {
    pub(super) settings: Vec<EffectiveSetting>,
    pub(super) routes: Vec<RouteConfig>,
    pub(super) rules: Vec<InvalidateRule>,
}

/// Reads the file at `path`, which `from` (a flag or a variable) names.
pub(super) fn read_file(path: &str, from: &str, problems: &mut Vec<String>) -> ConfigFile {
    match read_text(path) {
        Ok(text) => parse_file(&text, path, problems),
        Err(error) => {
            problems.push(format!("config = {path:?} (from {from}): cannot be read: {error}"));
            ConfigFile::default()
        }
    }
}

/// Reads the text of the file called `path`.
pub(super) fn parse_file(text: &str, path: &str, problems: &mut Vec<String>) -> ConfigFile {
    let (table, errors) = DeTable::parse_recoverable(text);
    let at = |offset: usize| {
        let before = text.as_bytes().iter().take(offset);
        format!("{path}:{}", 1 + before.filter(|byte| **byte == b'\n').count())
    };
    if !errors.is_empty() {
        // Only the message: the error as a whole quotes the line, which may hold a secret.
        problems.extend(errors.iter().map(|error| {
            let at = error.span().map_or_else(|| path.to_owned(), |span| at(span.start));
            format!("{at}: is not valid TOML: {}", error.message())
        }));
        return ConfigFile::default();
    }
    let mut leaves = Vec::new();
    flatten("", table.get_ref(), &mut leaves);
    leaves.sort_by_key(|leaf| leaf.offset);
    let mut settings = Vec::new();
    let (mut routes, mut rules) = (Vec::new(), Vec::new());
    for leaf in leaves {
        if leaf.key == RULES.key {
            rules = file_tables::read(leaf.value, leaf.offset, &at, problems);
            continue;
        }
        if leaf.key == ROUTES.key {
            routes = file_tables::read(leaf.value, leaf.offset, &at, problems);
            continue;
        }
        match leaf.setting(at) {
            Ok(setting) => settings.push(setting),
            Err(why) => problems.push(why),
        }
    }
    ConfigFile { settings, routes, rules }
}

/// A key with a value, or an unknown empty table.
struct Leaf<'t> {
    key: String,
    value: &'t DeValue<'t>,
    offset: usize,
}

fn flatten<'t>(table_key: &str, table: &'t DeTable<'t>, leaves: &mut Vec<Leaf<'t>>) {
    for (name, value) in table {
        let dot = if table_key.is_empty() { "" } else { "." };
        let key = format!("{table_key}{dot}{}", name.get_ref());
        match value.get_ref() {
            value if setting(&key).is_some_and(SettingSpec::is_table) => {
                leaves.push(Leaf { key, value, offset: name.span().start });
            }
            DeValue::Table(inner)
                if !FILE_TABLES.iter().any(|list| list.key == key)
                    && (!inner.is_empty() || is_table(&key)) =>
            {
                flatten(&key, inner, leaves);
            }
            value => leaves.push(Leaf { key, value, offset: name.span().start }),
        }
    }
}

fn is_table(key: &str) -> bool {
    settings().any(|spec| spec.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

impl Leaf<'_> {
    fn setting(self, at: impl Fn(usize) -> String) -> Result<EffectiveSetting, String> {
        let at = at(self.offset);
        let Some(spec) = setting(&self.key) else {
            let hint = settings::top_level_key(&self.key).map(|top| {
                format!("; {top} belongs at the top of the file, before the first [table]")
            });
            let near =
                || settings::nearest_key(&self.key).map(|near| format!("; did you mean {near}?"));
            let hint = hint.or_else(near).unwrap_or_default();
            // A quoted key may hold anything, and must not forge lines of a log.
            return Err(format!("{at}: {} is not a known key{hint}", self.key.escape_debug()));
        };
        let value = match self.value {
            DeValue::Table(table) if spec.is_table() => RawValue::of_pairs(table),
            other => RawValue::of(other),
        };
        let value = value.ok_or_else(|| {
            format!("{at}: {} cannot be a date, or a list of lists or tables", self.key)
        })?;
        Ok(EffectiveSetting::given(spec, value, at))
    }
}

/// The text of a small file.
fn read_text(path: &str) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        let error = format!("it is larger than {MAX_FILE} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, error));
    }
    Ok(text)
}
