//! Changes that a reload finds: how they are reported, without secrets, and listed in the documents.

use super::*;

/// Expects these changes from one file to another, each as `key: old -> new`.
#[track_caller]
fn check(old: &str, new: &str, want: &[&str]) {
    let (old, new) = (load(&[], &[], old).unwrap(), load(&[], &[], new).unwrap());
    let got: Vec<_> = old
        .changes(&new)
        .into_iter()
        .map(|change| format!("{}: {} -> {}", change.key, change.old, change.new))
        .collect();
    assert_eq!(got, want);
}

#[test]
fn a_change_tells_both_values() {
    check("", "settle = \"2s\"", &["settle: \"1s\" -> \"2s\""]);
    check("settle = \"2s\"", "", &["settle: \"2s\" -> \"1s\""]);
    check(
        "",
        "routes = [\"/a/{id}\"]\n[pending]\njournal = \"/j\"",
        &[
            "routes: [\"/jobs/{id}\", \"/api/v1/jobs/{id}\"] -> [\"/a/{id}\"]",
            "pending.journal: unset -> \"/j\"",
        ],
    );
    let states = "[ttl.states.map]\nrunning = \"9s\"";
    check("", states, &["ttl.states.map: unset -> { \"running\" = \"9s\" }"]);
    let rule = "[[invalidate]]\npath = \"/all\"\nmethods = [\"PUT\"]\nall = true";
    let shown = "[{ path = \"/all\", methods = [\"PUT\"], all = true }]";
    check("", rule, &[&format!("invalidate: unset -> {shown}")]);
    check(rule, "", &[&format!("invalidate: {shown} -> unset")]);
}

#[test]
fn what_means_the_same_is_no_change() {
    check("", REFERENCE, &[]);
    check("settle = \"60s\"", "settle = \"1m\"", &[]);
    check("max_body = 1024", "max_body = \"1KiB\"", &[]);
}

#[test]
fn a_change_shows_no_secret() {
    let (old, new) =
        ("webhook_secret = \"hunter2hunter2hu\"", "webhook_secret = \"hunter3hunter3hu\"");
    check(old, new, &["webhook_secret: \"***\" -> \"***\" (what is not shown differs)"]);
    check("", new, &["webhook_secret: unset -> \"***\""]);
    check(
        "store.url = \"redis://u:hunter2@a\"",
        "store.url = \"redis://u:hunter3@a\"",
        &["store.url: \"redis://***@a\" -> \"redis://***@a\" (what is not shown differs)"],
    );
}

#[test]
fn the_page_of_settings_names_all_that_a_reload_changes() {
    let page = PAGE.replace('\n', " ");
    let (_, rest) = page.split_once("A reload changes ").unwrap();
    let (list, _) = rest.split_once("and the `[[invalidate]]` rules").unwrap();
    let named: Vec<_> = list.split('`').skip(1).step_by(2).collect();
    let reloaded = settings().filter(|spec| spec.reload == ReloadClass::OnReload);
    assert_eq!(named, reloaded.map(|spec| spec.key).collect::<Vec<_>>());
}
