//! The alerts: that each goes by metrics that there are, and says what to do.

use std::collections::HashSet;

use serde_json::Value;

use super::{array, exposition, read, text};
use crate::support::{promtool::approves, python::yaml};

const ALERTS: &str = "config/alerts.yaml";

/// Rules of the alerts.
fn rules() -> Vec<Value> {
    let groups = yaml(ALERTS).remove(0)["groups"].take();
    array(&groups).iter().flat_map(|group| array(&group["rules"])).cloned().collect()
}

/// The sections of README as links name them.
fn anchors() -> HashSet<String> {
    let readme = read("README.md");
    let headings = readme.lines().filter(|line| line.starts_with("##"));
    let anchor = |heading: &str| {
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        text.chars().filter(kept).collect::<String>().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[tokio::test]
async fn every_alert_goes_by_metrics_that_there_are() {
    let (exposition, readme) = (exposition().await, read("README.md"));
    for rule in rules() {
        let expression = text(&rule["expr"]);
        let result = exposition.check(expression, &readme);
        result.unwrap_or_else(|error| panic!("{}: {error}", rule["alert"]));
    }
}

#[test]
fn every_alert_says_how_bad_it_is_and_what_to_do() {
    let (anchors, rules) = (anchors(), rules());
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
        let links: Vec<_> = description.split("README.md#").skip(1).collect();
        assert!(!links.is_empty(), "{name} does not say what to do");
        for link in links {
            let end = link.find(|c: char| !c.is_alphanumeric() && !matches!(c, '-' | '_'));
            let anchor = &link[..end.unwrap_or(link.len())];
            assert!(anchors.contains(anchor), "{name}: README has no #{anchor}");
        }
    }
}

#[test]
fn promtool_takes_the_alerts_and_they_say_what_they_should() {
    approves(&["check", "rules", ALERTS], "");
    approves(&["test", "rules", "tests/it/monitoring/alerts_test.yaml"], "");
}
