//! The environment, passed in as pairs so that tests need none.

use std::collections::BTreeMap;

use super::{
    SettingSpec, TracesConfig,
    file::read_text,
    layers::{EffectiveSetting, Origin},
    settings, suggest, traces,
};

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
pub(super) fn read(
    env: impl IntoIterator<Item = (String, String)>,
    problems: &mut Vec<String>,
) -> Environment {
    let mut env: BTreeMap<_, _> = env.into_iter().filter(|(_, text)| !text.is_empty()).collect();
    let config = env.remove(CONFIG).map(|path| (path, CONFIG));
    let names = settings().flat_map(|spec| spec.env.iter().map(move |name| (spec, *name)));
    let mut settings = Vec::new();
    for (spec, name) in names {
        let direct = env.remove(name);
        let by_file = spec.has_env_file.then(|| env.remove(&format!("{name}_FILE"))).flatten();
        settings.extend(setting(spec, name, direct, by_file, problems));
    }
    let unknown = env.keys().filter(|name| name.starts_with(PREFIX) && !is_service_link(name));
    let mut warnings = unknown.map(|name| warning(name)).collect();
    let traces = traces::read(&env, &mut warnings);
    Environment { config, settings, traces, warnings }
}

fn setting(
    spec: &'static SettingSpec,
    name: &str,
    direct: Option<String>,
    by_file: Option<String>,
    problems: &mut Vec<String>,
) -> Option<EffectiveSetting> {
    let (text, origin) = match (direct, by_file) {
        (None, None) => return None,
        (Some(text), None) => (text, Origin::Env(name.to_owned())),
        (Some(_), Some(_)) => {
            problems.push(format!("{name} and {name}_FILE are both set: keep one of them"));
            return None;
        }
        (None, Some(path)) => {
            let variable = format!("{name}_FILE");
            let text = secret_file(&variable, &path).map_err(|why| problems.push(why)).ok()?;
            (text, Origin::EnvFile { variable, path })
        }
    };
    Some(EffectiveSetting { spec, value: spec.split(&text), origin })
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
fn is_service_link(name: &str) -> bool {
    name.contains("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || name.contains("_PORT")
}

fn warning(name: &str) -> String {
    let hint = suggest::variable(name).map_or_else(
        || "`jobcache man` lists all variables".to_owned(),
        |near| format!("did you mean {near}?"),
    );
    let name = name.escape_debug();
    format!("the environment variable {name} is unknown and ignored; {hint}")
}
