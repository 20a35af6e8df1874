//! Tables of `[[invalidate]]` as a user writes them.

use super::*;

const TWO: &str = r#"
settle = "2s"

[[invalidate]]
methods = ["POST"]
path = "/uploads/{id}/finish"
request = ["/job_id", "/jobs/*/id"]
response = ["/a\"b"]
query = ["id", "ids"]
max_body = "8KiB"
on_miss = "ignore"

[[invalidate]]
path = "/jobs"
all = true
"#;

#[test]
fn rules_are_read_in_their_order() {
    let config = load(&[], &[], TWO).unwrap().config;
    let list = |items: &[&str]| items.iter().map(ToString::to_string).collect::<Vec<_>>();
    let first = InvalidateRule {
        methods: list(&["POST"]),
        path: "/uploads/{id}/finish".to_owned(),
        request: list(&["/job_id", "/jobs/*/id"]),
        response: list(&["/a\"b"]),
        query: list(&["id", "ids"]),
        all: false,
        max_body: 8 << 10,
        on_miss: OnMiss::Ignore,
    };
    let second =
        InvalidateRule { path: "/jobs".to_owned(), all: true, ..InvalidateRule::default() };
    assert_eq!(config.invalidate, [first, second]);
    assert_eq!(config.settle, Duration::from_secs(2));
}

#[test]
fn the_effective_configuration_shows_them() {
    let loaded = load(&[], &[], TWO).unwrap();
    let toml = loaded.to_toml();
    assert!(toml.ends_with("\n[[invalidate]]\npath = \"/jobs\"\nall = true\n"), "{toml}");
    assert_eq!(load(&[], &[], &toml).unwrap().config, loaded.config);
}

#[test]
fn a_bad_rule_is_refused_with_its_line_and_number() {
    refuses(
        "[[invalidate]]\npath = '/a/{id}'\n[[invalidate]]\npath = '/b'",
        "FILE:3: [[invalidate]] rule 2: it names no job; give it {id} in its path, request or \
         response with JSON pointers, query with parameters, or all = true",
    );
    refuses(
        "[[invalidate]]\npath = '/a/{id}'\nmethod = ['PUT']",
        "FILE:3: [[invalidate]] rule 1: method is not a known key; did you mean methods?",
    );
    refuses(
        "[[invalidate]]\npath = '/a/{id}'\nmethods = 'PUT'",
        "FILE:3: [[invalidate]] rule 1: methods = \"PUT\": must be a list, such as [\"a\", \"b\"]",
    );
    refuses(
        "[[invalidate]]\npath = ['/a/{id}']",
        "FILE:2: [[invalidate]] rule 1: path = [\"/a/{id}\"]: must be one value, not a list",
    );
    refuses(
        "[[invalidate]]\npath = '/a/{id}'\nmax_body = '2MiB'",
        "FILE:3: [[invalidate]] rule 1: max_body = \"2MiB\": must be between 1B and 1MiB",
    );
    refuses(
        "[[invalidate]]\npath = '/a/{id}'\nrequest = [['/b']]",
        "FILE:3: [[invalidate]] rule 1: request cannot be a date, or a list of lists or tables",
    );
    for wrong in ["invalidate = 7", "[invalidate]\npath = '/a/{id}'", "invalidate = ['/a']"] {
        let error = load(&[], &[], wrong).map(|loaded| loaded.config).unwrap_err();
        assert!(
            error.contains(
                "invalidate must be a list of tables: begin each of them with [[invalidate]]"
            ),
            "{error}"
        );
    }
}

/// The lines of a file that is commented out.
fn uncommented(text: &str) -> String {
    let is_toml = |line: &&str| line.starts_with("[[") || line.contains(" = ");
    let lines = text.lines().filter_map(|line| line.strip_prefix("# ")).filter(is_toml);
    lines.fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn the_example_of_the_reference_file_can_be_used_and_names_the_defaults() {
    let at = REFERENCE.find("# [[invalidate]]").unwrap();
    let rules = load(&[], &[], &uncommented(&REFERENCE[at..])).unwrap().config.invalidate;
    let [rule] = &rules[..] else { panic!("{rules:?}") };
    let default = InvalidateRule::default();
    assert_eq!((rule.all, rule.max_body), (default.all, default.max_body));
    assert!(
        ![&rule.methods, &rule.request, &rule.response, &rule.query]
            .iter()
            .any(|list| list.is_empty())
    );
}

#[test]
fn the_examples_of_the_page_can_be_used() {
    let start = PAGE.find("```toml\n[[invalidate]]").unwrap() + "```toml\n".len();
    let (example, _) = PAGE[start..].split_once("```").unwrap();
    assert_eq!(load(&[], &[], example).unwrap().config.invalidate.len(), 4);
}
