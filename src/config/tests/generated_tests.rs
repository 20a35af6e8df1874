//! The table of settings, and the documents that are made from it.

use super::*;

#[track_caller]
fn check_committed(committed: &str, generated: &str, mend: &str) {
    let differs = committed.lines().zip(generated.lines()).find(|(old, new)| old != new);
    assert!(committed == generated, "outdated, run `{mend}`; the first other line: {differs:?}");
}

#[test]
fn the_committed_reference_file_is_what_the_command_prints() {
    let mend = "cargo run -- docs toml > config/jobcache.toml";
    check_committed(REFERENCE, &reference_toml(), mend);
}

#[test]
fn the_committed_page_is_what_the_command_prints() {
    check_committed(PAGE, &settings_page(), "cargo run -- docs settings > docs/settings.md");
}

#[test]
fn every_setting_has_its_text_its_place_and_its_example() {
    for section in &SECTIONS {
        for spec in section.settings {
            let key = spec.key;
            let table = key.rsplit_once('.').map_or("", |(table, _)| table);
            assert_eq!(table, section.table(), "{key}");
            assert!(spec.help.ends_with('.') && spec.help.len() > 10, "{key}");
            assert!(!spec.limits().is_empty(), "{key}");
            assert_eq!(spec.example.is_empty(), !spec.default.is_empty(), "{key}");
        }
    }
}

#[test]
fn the_examples_of_settings_without_a_default_are_accepted() {
    let secret = "0123456789abcdef";
    for spec in settings().filter(|spec| spec.default.is_empty()) {
        let example = spec.example.replace("...", secret);
        let mut problems = Vec::new();
        let file = sources::parse_file(&format!("{} = {example}", spec.key), "FILE", &mut problems);
        assert_eq!(problems, Vec::<String>::new());
        let setting = &file.settings[0];
        assert_eq!(
            spec.setter.apply(&mut Config::default(), &setting.value),
            Ok(()),
            "{}",
            spec.key
        );
    }
}

/// The file must be valid with the tables of the top level first.
#[test]
fn the_top_level_comes_before_the_first_table() {
    let first = SECTIONS.iter().position(|section| !section.table().is_empty()).unwrap();
    assert!(SECTIONS[first..].iter().all(|section| !section.table().is_empty()));
}

#[test]
fn the_smallest_secret_of_the_documents_is_the_one_that_is_checked() {
    for key in ["webhook_secret", "credentials.secret"] {
        let limits = setting(key).unwrap().limits();
        assert!(limits.contains(&format!("{} visible ASCII", parse::MIN_SECRET)), "{limits}");
    }
}

#[test]
fn the_reference_file_gives_every_setting_at_its_default() {
    let mut problems = Vec::new();
    let given = sources::parse_file(REFERENCE, "jobcache.toml", &mut problems).settings;
    assert_eq!(problems, Vec::<String>::new());
    let mut config = Config::default();
    for spec in settings() {
        let setting = given.iter().find(|setting| setting.spec.key == spec.key);
        let Some(setting) = setting else {
            assert_eq!(spec.default, "", "{} is missing", spec.key);
            let name = spec.name();
            assert!(REFERENCE.contains(&format!("\n# {name} = ")), "{}", spec.key);
            continue;
        };
        assert_eq!(setting.value, spec.setter.split(spec.default), "{}", spec.key);
        spec.setter.apply(&mut config, &setting.value).unwrap();
    }
    assert_eq!(config, Config::default());
    assert_eq!(load(&[], &[], REFERENCE).unwrap().config, Config::default());
}

#[test]
fn the_reference_file_and_the_page_name_every_variable_and_flag() {
    let unwrapped = |text: &str, line_break: &str| text.replace(line_break, " ");
    for text in [unwrapped(REFERENCE, "\n# "), unwrapped(PAGE, "\n")] {
        for spec in settings() {
            for name in spec.variables() {
                assert!(text.contains(&name), "{name}");
            }
            let flag = spec.flag.map(|flag| format!("--{}", flag.name));
            assert!(flag.is_none_or(|flag| text.contains(&flag)), "{}", spec.key);
            assert!(text.contains(&spec.limits()), "{}", spec.key);
        }
    }
}

#[test]
fn names_are_unique() {
    let mut names: Vec<_> = settings().flat_map(SettingSpec::variables).collect();
    names.extend(settings().map(|spec| spec.key.to_owned()));
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn every_other_setting_is_one_value() {
    let tables = settings().filter(|spec| spec.is_table());
    assert_eq!(tables.map(|spec| spec.key).collect::<Vec<_>>(), ["ttl.states.map"]);
    let lists = settings().filter(|spec| spec.is_list());
    assert_eq!(
        lists.map(|spec| spec.key).collect::<Vec<_>>(),
        [
            "routes",
            "query.allow",
            "query.ignore",
            "server.trusted_proxies",
            "credentials.headers",
            "credentials.ignore",
            "credentials.cookies",
            "responses.volatile",
            "warm.headers"
        ]
    );
}
