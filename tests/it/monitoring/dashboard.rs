//! The dashboard: it can be imported, and each panel queries existing metrics.
//!
//! No Grafana runs here; the tests only show that the file has the shape of a Grafana export.

use std::{collections::HashSet, fs};

use serde_json::{Value, json};

use super::{array, exposition, read, text, vocabulary};
use crate::support::promtool::approves;

/// Columns of a dashboard.
const COLUMNS: u64 = 24;

fn dashboard() -> Value {
    serde_json::from_str(&read("config/grafana.json")).expect("JSON")
}

/// Returns all queries of the dashboard, with Grafana's variables substituted.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = array(&dashboard["panels"]).iter().filter_map(|panel| panel["targets"].as_array());
    let annotations = array(&dashboard["annotations"]["list"]);
    let queries = panels.flatten().chain(annotations);
    let put_in = |query: &Value| {
        text(&query["expr"]).replace("$__rate_interval", "1m").replace("$__interval", "1m")
    };
    queries.map(put_in).collect()
}

#[test]
fn the_dashboard_imports_into_any_grafana_from_10_on() {
    let dashboard = dashboard();
    assert_eq!(dashboard["uid"], "jobcache");
    // The schema of Grafana 10.0; newer versions migrate it.
    assert_eq!(dashboard["schemaVersion"], 38);
    assert!(dashboard["id"].is_null(), "the export contains the id of a Grafana instance");
    let variables = array(&dashboard["templating"]["list"]);
    let kinds: Vec<_> = variables.iter().map(|v| (text(&v["name"]), text(&v["type"]))).collect();
    let datasource = ("DS_PROMETHEUS", "datasource");
    assert_eq!(kinds, [datasource, ("job", "query"), ("instance", "query")]);
    assert_eq!(variables[0]["query"], "prometheus");

    let panels = array(&dashboard["panels"]);
    let ids: HashSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "an id is not unique");
    let rows: Vec<_> = panels.iter().filter(|panel| panel["type"] == "row").collect();
    let rows: Vec<_> = rows.iter().map(|row| text(&row["title"])).collect();
    assert_eq!(
        rows,
        [
            "Overview",
            "Why not cached",
            "Latency",
            "Redis and near cache",
            "Upstream",
            "Push",
            "Limits",
            "Process"
        ]
    );
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = text(&panel["title"]);
        assert!(text(&panel["description"]).ends_with('.'), "{title}");
        text(&panel["fieldConfig"]["defaults"]["unit"]);
        let targets = array(&panel["targets"]);
        let refs: HashSet<_> = targets.iter().map(|target| text(&target["refId"])).collect();
        assert!(!refs.is_empty() && refs.len() == targets.len(), "{title}");
        for part in targets.iter().chain([panel]) {
            assert_eq!(part["datasource"]["uid"], "${DS_PROMETHEUS}", "{title}");
            assert_eq!(part["datasource"]["type"], "prometheus", "{title}");
        }
    }
}

#[test]
fn no_panel_covers_another() {
    let mut cells = HashSet::new();
    for panel in array(&dashboard()["panels"]) {
        let place = |name: &str| panel["gridPos"][name].as_u64().expect("a number");
        let (x, y, w, h) = (place("x"), place("y"), place("w"), place("h"));
        assert!(w > 0 && h > 0 && x + w <= COLUMNS, "{}", panel["title"]);
        for cell in (y..y + h).flat_map(|y| (x..x + w).map(move |x| (x, y))) {
            assert!(cells.insert(cell), "{} overlaps another panel", panel["title"]);
        }
    }
}

#[tokio::test]
async fn every_panel_shows_metrics_that_there_are() {
    let exposition = exposition().await;
    let dashboard = dashboard();
    let vocabulary = vocabulary();
    let check = |expression: &str| {
        let result = exposition.check(expression, &vocabulary);
        result.unwrap_or_else(|error| panic!("{expression}: {error}"));
    };
    let mut queries = 0;
    for target in array(&dashboard["panels"]).iter().filter_map(|panel| panel["targets"].as_array())
    {
        for target in target {
            let expression = text(&target["expr"]);
            check(expression);
            assert!(
                expression.contains("job=~\"$job\", instance=~\"$instance\""),
                "{expression} ignores the selection"
            );
            // A label in the legend must occur in the expression, as a label or in a list of
            // labels.
            for label in target["legendFormat"].as_str().unwrap_or_default().split("{{").skip(1) {
                let (label, _) = label.split_once("}}").expect("a label");
                assert!(expression.contains(label), "{expression} has no {label}");
            }
            queries += 1;
        }
    }
    assert!(queries > 40, "{queries}");
    for annotation in array(&dashboard["annotations"]["list"]) {
        check(text(&annotation["expr"]));
    }
    for variable in &array(&dashboard["templating"]["list"])[1..] {
        let query = text(&variable["query"]["query"]);
        let query = query.strip_prefix("label_values(").expect("values of a label");
        check(query.rsplit_once(", ").expect("a label").0);
    }
}

#[test]
fn promtool_can_read_what_the_dashboard_asks() {
    let rule = |expression| json!({ "record": "panel", "expr": expression });
    let rules: Vec<_> = expressions(&dashboard()).into_iter().map(rule).collect();
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    // JSON is YAML.
    let groups = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    fs::write(file.path(), groups.to_string()).expect("a file written");
    approves(&["check", "rules", "--lint=none", file.path().to_str().expect("a path")], "");
}
