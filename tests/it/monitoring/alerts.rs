//! The alerts: each uses existing metrics and says what to do.

use std::collections::HashSet;

use serde_json::Value;

use super::{array, exposition, read, text, vocabulary};
use crate::support::{promtool::approves, python::yaml};

const ALERTS: &str = "config/alerts.yaml";

/// Returns the rules of the alerts.
fn rules() -> Vec<Value> {
    let groups = yaml(ALERTS).remove(0)["groups"].take();
    array(&groups).iter().flat_map(|group| array(&group["rules"])).cloned().collect()
}

/// Returns the sections of a page under `docs/`, as links name them.
fn anchors(page: &str) -> HashSet<String> {
    let page = read(&format!("docs/{page}"));
    let headings = page.lines().filter(|line| line.starts_with("##"));
    let anchor = |heading: &str| {
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        text.chars().filter(kept).collect::<String>().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[tokio::test]
async fn every_alert_goes_by_metrics_that_there_are() {
    let exposition = exposition().await;
    let vocabulary = vocabulary();
    for rule in rules() {
        let expression = text(&rule["expr"]);
        let result = exposition.check(expression, &vocabulary);
        result.unwrap_or_else(|error| panic!("{}: {error}", rule["alert"]));
    }
}

#[test]
fn every_alert_says_how_bad_it_is_and_what_to_do() {
    let rules = rules();
    let names: HashSet<_> = rules.iter().map(|rule| text(&rule["alert"])).collect();
    assert!(names.len() == rules.len() && rules.len() > 12, "{names:?}");
    for rule in &rules {
        let name = text(&rule["alert"]);
        assert!(name.starts_with("Jobcache"), "{name}");
        text(&rule["for"]);
        let severity = text(&rule["labels"]["severity"]);
        assert!(["critical", "warning"].contains(&severity), "{name}: {severity}");
        text(&rule["annotations"]["summary"]);
        let description = text(&rule["annotations"]["description"]);
        assert!(!description.contains("README"), "{name} links README, not a page under docs/");
        let links: Vec<_> = description.split("docs/").skip(1).collect();
        assert!(!links.is_empty(), "{name} does not say what to do");
        for link in links {
            let (page, rest) = link.split_once('#').expect("a section of a page");
            let end = rest.find(|c: char| !c.is_alphanumeric() && !matches!(c, '-' | '_'));
            let anchor = &rest[..end.unwrap_or(rest.len())];
            assert!(anchors(page).contains(anchor), "{name}: docs/{page} has no #{anchor}");
        }
    }
}

#[test]
fn promtool_takes_the_alerts_and_they_say_what_they_should() {
    approves(&["check", "rules", ALERTS], "");
    approves(&["test", "rules", "tests/it/monitoring/alerts_test.yaml"], "");
}
