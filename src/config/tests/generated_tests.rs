//! Output: documents, the changes that a reload finds, and values that must stay hidden.

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
        let file = setting_sources::parse_file(
            &format!("{} = {example}", spec.key),
            "FILE",
            &mut problems,
        );
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
    let given = setting_sources::parse_file(REFERENCE, "jobcache.toml", &mut problems).settings;
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
    assert_eq!(tables.map(|spec| spec.key).collect::<Vec<_>>(), ["statuses", "ttl.states.map"]);
    let lists = settings().filter(|spec| spec.is_list());
    assert_eq!(
        lists.map(|spec| spec.key).collect::<Vec<_>>(),
        [
            "routes",
            "except",
            "query.allow",
            "query.ignore",
            "server.trusted_proxies",
            "credentials.headers",
            "credentials.ignore",
            "credentials.cookies",
            "responses.volatile",
            "warm.headers",
            "push.final.values"
        ]
    );
}

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
        &["store.url: \"redis://u:***@a\" -> \"redis://u:***@a\" (what is not shown differs)"],
    );
}

#[test]
fn the_page_of_settings_names_all_that_a_reload_changes() {
    let page = PAGE.replace('\n', " ");
    let (_, rest) = page.split_once("A reload changes ").unwrap();
    let (list, _) = rest.split_once("and the tables of `[[route]]`").unwrap();
    let named: Vec<_> = list.split('`').skip(1).step_by(2).collect();
    let reloaded = settings().filter(|spec| spec.reload == ReloadClass::OnReload);
    assert_eq!(named, reloaded.map(|spec| spec.key).collect::<Vec<_>>());
}

const NEW: &str = "0123456789abcdef";
const OLD: &str = "a,secret,with,commas";

const SECRETS: [&str; 2] = ["hunter2hunter2", "swordfish"];

#[track_caller]
fn hides(text: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{text}");
    }
}

#[test]
fn secrets_are_in_no_output() {
    let vars = [
        ("JOBCACHE_WEBHOOK_SECRET", "hunter2hunter2hunter2"),
        ("REDIS_URL", "redis://me:swordfish@cache:6379/1"),
        ("JOBCACHE_WARM_AUTHORIZATION", "Bearer swordfish"),
        ("JOBCACHE_WARM_HEADERS", "Host: a, X-Api-Key: hunter2hunter2"),
    ];
    let loaded = load(&[], &vars, "").unwrap();
    hides(&format!("{loaded:?} {:#?}", loaded.config));
    hides(&loaded.to_toml());
    assert_eq!(loaded.config.store.url.to_string(), "redis://me:***@cache:6379/1");
    let vars = [
        ("REDIS_URL", "redis-sentinel://h/m"),
        ("JOBCACHE_STORE_PASSWORD", "swordfish"),
        ("JOBCACHE_STORE_SENTINEL_PASSWORD", "swordfish"),
    ];
    let loaded = load(&[], &vars, "").unwrap();
    hides(&format!("{loaded:?} {}", loaded.to_toml()));
}

#[test]
fn secrets_are_in_no_message() {
    for url in [
        "redis-sentinel://:swordfish@a",
        "redis-sentinel://u:x/swordfish@a/m",
        "redis://:swordfish@a/x",
        "redis://:x/swordfish@a",
        "redis://:12/swordfish@a",
        "redis://u:p@swordfish/x@a",
        "redis://u:p@swordfish@a/x",
        "redis://:1#swordfish@a",
        "redis://u:1?swordfish@a",
        "redis://a/x?password=swordfish",
        "redis://:swordfish",
        "redis://me:swordfish/1",
        "redis-sentinel://me:swordfish",
        "redis://u:p@a?password=x@swordfish",
        ":swordfish",
        "me:swordfish",
        "me:swordfish@a",
        "http://me:swordfish@a",
    ] {
        for name in ["REDIS_URL", "UPSTREAM_URL"] {
            hides(&load(&[], &[(name, url)], "").unwrap_err());
        }
    }
    for url in
        ["unix:///a?passwd=swordfish", "redis://a?swordfish/x", "redis://a/0?x=1&swordfish@b"]
    {
        let loaded = load(&[], &[("REDIS_URL", url)], "").unwrap();
        assert_eq!(loaded.warnings.len(), 1, "{url}");
        hides(&(loaded.warnings.concat() + &loaded.to_toml()));
    }
    for text in ["hunter2hunter2hunter2\u{e9}", "hunter2hunter2hunter2 hunter2hunter2"] {
        hides(&load(&[], &[("JOBCACHE_WEBHOOK_SECRET", text)], "").unwrap_err());
    }
    for headers in ["swordfish", "x y: swordfish", "Authorization: swordfish", "a: swordfish\u{e9}"]
    {
        hides(&load(&[], &[("JOBCACHE_WARM_HEADERS", headers)], "").unwrap_err());
    }
    hides(&load(&[], &[("JOBCACHE_WARM_AUTHORIZATION", "swordfish\n")], "").unwrap_err());
    hides(&load(&[], &[], "webhook_secret = \"hunter2hunter2").unwrap_err());
    hides(&load(&[], &[], "webhook_secret = hunter2hunter2").unwrap_err());
    hides(&load(&[], &[], "store = { url = 'redis://:swordfish@a'").unwrap_err());
    hides(&load(&[], &[], "webhook_secret = ['hunter2hunter2']").unwrap_err());
    hides(&load(&[], &[], "webhook_secret = { a = 'hunter2hunter2' }").unwrap_err());
}

#[test]
fn there_may_be_several_webhook_secrets_and_how_many_is_shown() {
    let both = [NEW, OLD].map(Secret::new).to_vec();
    let check = |vars: &[(&str, &str)], file: &str, shown: &str| {
        let loaded = load(&[], vars, file).unwrap();
        assert_eq!(loaded.config.webhook.secrets, both[..shown.matches("***").count()], "{file}");
        let line = format!("webhook_secret = {shown} ");
        assert!(loaded.to_toml().contains(&line), "{}", loaded.to_toml());
    };
    check(&[], &format!("webhook_secret = '{NEW}'"), r#""***""#);
    check(&[], &format!("webhook_secret = ['{NEW}']"), r#""***""#);
    let two = r#"["***", "***"]"#;
    check(&[], &format!("webhook_secret = ['{NEW}', '{OLD}']"), two);
    check(&[], &format!("webhook_secret = '{NEW} {OLD}'"), two);
    check(&[("JOBCACHE_WEBHOOK_SECRET", &format!("{NEW} {OLD}"))], "", two);
    let mounted = super::Temp::new("secrets", &format!("{NEW}\n{OLD}\n"));
    check(&[("JOBCACHE_WEBHOOK_SECRET_FILE", mounted.path())], "", two);
    let error = load(&[], &[], "webhook_secret = []").unwrap_err();
    assert!(error.contains("must name 1 to 8 secrets"), "{error}");
}

/// A message shows the value that it complains about: of a URL only the login and the query are secret.
#[test]
fn a_url_that_is_wrong_is_shown_without_its_login() {
    let cases = [
        ("foo", "foo"),
        ("localhost:8000", "localhost:8000"),
        ("api.internal:80/", "api.internal:80/"),
        ("10.0.0.1:8000/v1", "10.0.0.1:8000/v1"),
        ("[::1]:6379", "[::1]:6379"),
        ("ftp://a.example:21/x", "ftp://a.example:21/x"),
        ("redis:/localhost", "redis:/localhost"),
        ("unix:jobs.sock", "unix:jobs.sock"),
        ("htp://me:swordfish@a.example/x", "htp://me:***@a.example/x"),
        ("me:swordfish@a:80", "me:***@a:80"),
        ("localhost:8000?swordfish", "localhost:8000?***"),
        ("me:swordfish", "***"),
        ("htp://me:swordfish", "htp://***"),
        ("htp://u:1?swordfish@a", "htp://***"),
    ];
    for (name, setting) in [("UPSTREAM_URL", "upstream.url"), ("REDIS_URL", "store.url")] {
        for (url, shown) in cases {
            let error = load(&[], &[(name, url)], "").unwrap_err();
            assert!(error.contains(&format!("{setting} = \"{shown}\"")), "{shown}: {error}");
        }
    }
    let error = load(&[("upstream", "foo")], &[], "").unwrap_err();
    assert!(error.contains("upstream.url = \"foo\" (from --upstream)"), "{error}");
}

#[test]
fn quotes_and_white_space_around_a_url_are_no_part_of_it_whatever_the_source() {
    const URL: &str = "redis://localhost:16379";
    for text in [format!("\"{URL}\""), format!(" '{URL}' ")] {
        let file = format!("store.url = {text:?}");
        for loaded in [
            load(&[("redis-url", &text)], &[], ""),
            load(&[], &[("REDIS_URL", &text)], ""),
            load(&[], &[], &file),
        ] {
            assert_eq!(loaded.unwrap().config.store.url.to_string(), URL, "{text}");
        }
    }
}

/// The configured address does not matter then.
#[test]
fn an_open_socket_of_the_service_manager_needs_the_secret_as_well() {
    let open = "0.0.0.0:9090".parse().unwrap();
    let process = ProcessFacts { sockets: vec![("admin", open)], ..ProcessFacts::default() };
    let load = |vars: &[(&str, &str)]| {
        Config::load_with(&process, flags(&[("admin", "127.0.0.1:9090")]), env(vars))
    };
    let error = load(&[]).unwrap_err().to_string();
    assert!(error.contains("(from a socket of the service manager) can be reached"), "{error}");
    let loaded = load(&[("JOBCACHE_WEBHOOK_SECRET", "0123456789abcdef")]).unwrap();
    assert_eq!(loaded.config.admin, open.into());
}
