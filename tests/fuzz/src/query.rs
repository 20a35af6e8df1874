//! The queries that a cached read may have, compared with how `url` parses them.
//!
//! Input: the query.

use jobcache::config::QueryConfig;

const IGNORE: [&str; 2] = ["_", "utm_source"];
const ALLOW: [&str; 2] = ["view", "v"];

/// Checks one input.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let names = |names: [&str; 2]| names.map(str::to_owned).to_vec();
    let query = QueryConfig { ignore: names(IGNORE), allow: names(ALLOW) };
    assert!(!QueryConfig::default().admits(text));
    let counted: Vec<_> = query.counted(text).collect();
    let admitted = query.admits(text);
    for (name, _) in url::form_urlencoded::parse(text.as_bytes()) {
        let known = IGNORE.iter().chain(&ALLOW).any(|known| *known == name);
        assert!(!admitted || known, "{name:?} of {text:?} is neither ignored nor allowed");
        if ALLOW.iter().any(|allowed| *allowed == name) {
            assert!(!counted.is_empty(), "{name:?} of {text:?} does not count");
        }
    }
    // The counted parameters stay the same without the ignored ones.
    let rest = counted.join("&");
    assert_eq!(
        query.counted(&rest).collect::<Vec<_>>(),
        if rest.is_empty() { vec![""] } else { counted }
    );
    // A parameter that is not configured is never admitted.
    assert!(
        !query.admits(&format!("{text}&fields=a")) && !query.admits(&format!("fields=a&{text}"))
    );
}
