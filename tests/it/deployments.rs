//! The files under `config/` that deploy jobcache, compared with what jobcache accepts, offers and
//! needs.
//!
//! These tests do not show that Docker, Kubernetes and systemd accept the files.

use std::{collections::BTreeMap, fs, time::Duration};

use jobcache::config::Config;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Process, Setup, python::yaml};

const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const UNIT: &str = "config/jobcache.service";

/// Arguments and environment that a deployment gives to jobcache.
struct Deployment {
    name: &'static str,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    /// Directory for the files that `_FILE` variables name.
    secrets: TempDir,
}

impl Deployment {
    fn new(
        name: &'static str,
        args: &[&str],
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let args = args.iter().map(ToString::to_string).collect();
        let env = env.into_iter().filter(|(name, _)| name.starts_with("JOBCACHE_")).collect();
        Self { name, args, env, secrets: tempfile::tempdir().expect("a temporary directory") }
    }

    fn compose() -> Self {
        let env = object(&yaml("config/compose.yaml")[0]["services"]["jobcache"]["environment"]);
        Self::new("compose.yaml", &[], env)
    }

    fn kubernetes() -> Self {
        let jobcache = container(&pod(), "jobcache");
        let env = array(&jobcache["env"]).into_iter();
        let env = env.map(|each| (text(&each["name"]), text(&each["value"])));
        Self::new("kubernetes.yaml", &[], env)
    }

    /// Returns the systemd deployment, with our configuration file at the path in `ExecStart`.
    fn systemd() -> Self {
        let start = directive("ExecStart");
        let args = start.strip_prefix("/usr/local/bin/jobcache ").expect("the path of jobcache");
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/jobcache.toml");
        let args = args.replace("/etc/jobcache/jobcache.toml", file);
        Self::new("jobcache.service", &args.split(' ').collect::<Vec<_>>(), [])
    }

    fn image() -> Self {
        let dockerfile = read("Dockerfile");
        let env = dockerfile.lines().filter_map(|line| line.strip_prefix("ENV ")?.split_once('='));
        Self::new("Dockerfile", &[], env.map(|(name, value)| (name.to_owned(), value.to_owned())))
    }

    fn all() -> [Self; 4] {
        [Self::compose(), Self::kubernetes(), Self::systemd(), Self::image()]
    }

    /// Returns the output of `jobcache check` on a machine that has the secrets and reaches no
    /// other service.
    fn check(&self) -> String {
        let env = self.env.iter().map(|(name, value)| (name.as_str(), self.here(name, value)));
        let env: Vec<_> = env.collect();
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let args: Vec<_> = self.args.iter().map(String::as_str).chain(["check"]).collect();
        let (_, stdout, stderr) = Process::output(&args, &env);
        assert!(stdout.starts_with("# The configuration is valid."), "{}: {stderr}", self.name);
        // Warnings about unknown variables and the like.
        assert!(!stdout.contains("warning:"), "{}: {stdout}", self.name);
        stdout
    }

    /// Returns a value as it would be on this machine: other services are unreachable, and secrets
    /// are files of the test.
    fn here(&self, name: &str, value: &str) -> String {
        if value.starts_with("${") {
            return SECRET.to_owned();
        }
        if name.ends_with("_FILE") {
            let (_, file) = value.rsplit_once('/').expect("a path");
            let content = if name.contains("URL") { "redis://:word@127.0.0.1:1" } else { SECRET };
            let path = self.secrets.path().join(file);
            fs::write(&path, content).expect("a file written");
            return path.to_str().expect("a path").to_owned();
        }
        value.replace("//api:8000", "//127.0.0.1:1").replace("//redis:6379", "//127.0.0.1:1")
    }

    /// Returns the longest time from the signal to the end of jobcache.
    fn drain(&self) -> Duration {
        let time = |name: &str, default| {
            self.env.get(name).map_or(default, |text| humantime::parse_duration(text).unwrap())
        };
        let default = Config::default();
        time("JOBCACHE_DRAIN_DELAY", default.drain.delay)
            + time("JOBCACHE_DRAIN_TIMEOUT", default.drain.timeout)
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).expect("a file")
}

#[track_caller]
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string")).to_owned()
}

#[track_caller]
fn array(value: &Value) -> Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("{value} is not a list")).clone()
}

#[track_caller]
fn object(value: &Value) -> BTreeMap<String, String> {
    let value = value.as_object().unwrap_or_else(|| panic!("{value} is not an object"));
    value.iter().map(|(name, value)| (name.clone(), text(value))).collect()
}

#[track_caller]
fn seconds(value: &Value) -> Duration {
    Duration::from_secs(value.as_u64().unwrap_or_else(|| panic!("{value} is not a number")))
}

/// Returns the value of a directive in the unit.
#[track_caller]
fn directive(name: &str) -> String {
    let prefix = format!("{name}=");
    let unit = read(UNIT);
    unit.lines().find_map(|line| line.strip_prefix(&prefix)).expect("a directive").to_owned()
}

/// Returns the documents of this kind in `kubernetes.yaml`.
fn kubernetes(kind: &str) -> Vec<Value> {
    yaml("config/kubernetes.yaml").into_iter().filter(|each| each["kind"] == kind).collect()
}

fn pod() -> Value {
    kubernetes("Deployment")[0]["spec"]["template"]["spec"].clone()
}

#[track_caller]
fn container(pod: &Value, name: &str) -> Value {
    array(&pod["containers"]).into_iter().find(|each| each["name"] == name).expect("a container")
}

/// Returns the number of a named port of jobcache's container.
#[track_caller]
fn port(name: &Value) -> u64 {
    let ports = array(&container(&pod(), "jobcache")["ports"]);
    let port = ports.iter().find(|port| port["name"] == *name).expect("a port of that name");
    port["containerPort"].as_u64().expect("a number")
}

#[test]
fn what_a_deployment_sets_is_in_force() {
    for deployment in Deployment::all() {
        let settings = deployment.check();
        for name in deployment.env.keys() {
            assert!(settings.contains(name), "{}: {name} in {settings}", deployment.name);
        }
    }
}

#[test]
fn nothing_ends_jobcache_before_its_drain_does() {
    let compose = yaml("config/compose.yaml")[0]["services"]["jobcache"].clone();
    let patience = |text: &str| humantime::parse_duration(text).expect("a duration");
    let grace = seconds(&pod()["terminationGracePeriodSeconds"]);
    for (deployment, grace) in [
        (Deployment::compose(), patience(&text(&compose["stop_grace_period"]))),
        (Deployment::kubernetes(), grace),
        (Deployment::systemd(), patience(&directive("TimeoutStopSec"))),
    ] {
        let drain = deployment.drain();
        assert!(grace > drain, "{}: {grace:?} for {drain:?}", deployment.name);
    }
}

#[test]
fn the_backend_of_a_pod_outlives_the_drain_of_its_sidecar() {
    let backend = container(&pod(), "api");
    let stays = seconds(&backend["lifecycle"]["preStop"]["sleep"]["seconds"]);
    assert!(stays >= Deployment::kubernetes().drain(), "{stays:?}");
    assert!(stays < seconds(&pod()["terminationGracePeriodSeconds"]), "{stays:?}");
}

#[tokio::test]
async fn probes_ask_for_what_the_admin_listener_answers() {
    let setup = Setup::new().await;
    let admin = &Deployment::kubernetes().env["JOBCACHE_ADMIN"];
    let jobcache = container(&pod(), "jobcache");
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &jobcache[probe]["httpGet"];
        assert!(admin.ends_with(&format!(":{}", port(&get["port"]))), "{probe}");
        assert_eq!(setup.sidecar.admin.get(&text(&get["path"])).await.status, 200, "{probe}");
    }
    let scraped = &kubernetes("Deployment")[0]["spec"]["template"]["metadata"]["annotations"];
    assert!(admin.ends_with(&format!(":{}", text(&scraped["prometheus.io/port"]))));
}

#[test]
fn services_and_the_policy_name_ports_and_pods_that_there_are() {
    let labels = &kubernetes("Deployment")[0]["spec"]["template"]["metadata"]["labels"];
    for service in kubernetes("Service") {
        assert_eq!(service["spec"]["selector"], *labels);
        let ports = array(&service["spec"]["ports"]);
        assert!(ports.iter().all(|each| port(&each["targetPort"]) > 0));
    }
    let policy = kubernetes("NetworkPolicy")[0]["spec"].clone();
    assert_eq!(policy["podSelector"]["matchLabels"], *labels);
    let listen = &Deployment::kubernetes().env["JOBCACHE_LISTEN"];
    for rule in array(&policy["ingress"]) {
        let port = port(&rule["ports"][0]["port"]);
        let open_to_all = rule["from"].is_null();
        assert_eq!(open_to_all, listen.ends_with(&format!(":{port}")), "{rule}");
    }
}

#[test]
fn what_a_pod_mounts_is_where_its_variables_look() {
    let mounts = array(&container(&pod(), "jobcache")["volumeMounts"]);
    let deployment = Deployment::kubernetes();
    let files: Vec<_> = deployment.env.iter().filter(|(name, _)| name.ends_with("_FILE")).collect();
    assert!(files.len() > 1, "{files:?}");
    for (name, path) in files {
        let mounted = mounts.iter().any(|mount| path.starts_with(&text(&mount["mountPath"])));
        assert!(mounted, "{name}={path}");
        let (_, key) = path.rsplit_once('/').expect("a path");
        let made = read("config/kubernetes.yaml").contains(&format!("--from-literal={key}="));
        assert!(made, "the comments do not create a secret with {key}");
    }
}

#[test]
fn the_sidecar_of_a_pod_has_no_privileges() {
    let context = container(&pod(), "jobcache")["securityContext"].clone();
    assert_eq!(context["runAsNonRoot"], true);
    assert_eq!(context["readOnlyRootFilesystem"], true);
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["capabilities"]["drop"][0], "ALL");
    assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
    let user = format!("USER {0}:{0}", context["runAsUser"]);
    assert!(read("Dockerfile").lines().any(|line| line == user), "{user}");
}
