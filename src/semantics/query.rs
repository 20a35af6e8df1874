//! Query strings of reads: which ones are cached, and which of their parameters count.
//!
//! Frameworks read queries differently: some also split at `;`, some ignore the case of names, and
//! some read `_[a]` as `_`. So a query is recognised narrowly: any doubt costs only a miss.

use percent_encoding::percent_decode_str;

use super::settings;

/// Parameters that a cached read may have, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Parameters that the upstream ignores, such as cache busters.
    ignore: Vec<String>,
    /// Parameters that change the variant of the answer.
    allow: Vec<String>,
}

impl Query {
    /// Creates the filter from the configuration.
    pub fn new(settings: &settings::QueryConfig) -> Self {
        Self { ignore: settings.ignore.clone(), allow: settings.allow.clone() }
    }

    /// Returns whether a query consists only of ignored and allowed parameters. An empty query does
    /// not.
    pub fn admits(&self, query: &str) -> bool {
        let known = |parameter| {
            contains_name(&self.ignore, parameter) || contains_name(&self.allow, parameter)
        };
        !query.contains(';') && query.split('&').all(known)
    }

    /// Returns the parameters that may change the answer, as spelled and in their order.
    pub fn counted<'q>(&self, query: &'q str) -> impl Iterator<Item = &'q str> {
        query.split('&').filter(|parameter| !contains_name(&self.ignore, parameter))
    }
}

fn contains_name(list: &[String], parameter: &str) -> bool {
    let name = parameter.split('=').next().unwrap_or_default();
    list.iter().any(|known| percent_decode_str(name).eq(known.bytes()))
}

#[cfg(test)]
mod tests {
    use super::Query;

    fn query() -> Query {
        Query {
            ignore: vec!["_".to_owned(), "utm_source".to_owned()],
            allow: vec!["view".to_owned(), "v".to_owned()],
        }
    }

    #[track_caller]
    fn check(text: &str, want: bool) {
        assert_eq!(query().admits(text), want, "{text:?}");
    }

    #[test]
    fn what_is_ignored_does_not_count_and_what_is_allowed_does_as_it_is_spelled() {
        let check = |text: &str, want: &[&str]| {
            check(text, true);
            assert_eq!(query().counted(text).collect::<Vec<_>>(), want, "{text:?}");
        };
        check("_=1", &[]);
        check("view=short", &["view=short"]);
        check("v=2&_=1&view=a,b&v=3", &["v=2", "view=a,b", "v=3"]);
        check("%76=2&v", &["%76=2", "v"]);
        check("view=_", &["view=_"]);
    }

    #[test]
    fn a_query_of_ignored_parameters_alone_is_covered() {
        check("_", true);
        check("_=", true);
        check("_=1718000000", true);
        check("_=1&_=2", true);
        check("utm_source=a&_=b=c", true);
        check("%5F=1&utm%5fsource", true);
        check("_=%3B%26fields=a", true);
    }

    #[test]
    fn a_query_with_anything_else_is_not_covered() {
        for query in
            ["fields=a", "_=1&fields=a", "fields=a&_=1", "__=1", "_[a]=1", "_.a=1", "%255F=1"]
        {
            check(query, false);
        }
        // Case and spaces count, even where the upstream ignores them.
        for query in ["UTM_SOURCE=a", "+_=1", "_+=1", "%20_=1", "_%00=1", "_%"] {
            check(query, false);
        }
    }

    #[test]
    fn what_some_upstreams_split_otherwise_is_not_covered() {
        check("_=1;fields=a", false);
        check("_;_", false);
    }

    #[test]
    fn an_empty_parameter_is_not_covered() {
        for query in ["", "&", "_=1&", "&_=1", "_=1&&_=2", "=", "=1"] {
            check(query, false);
        }
    }

    #[test]
    fn without_names_no_query_is_covered() {
        for query in ["", "_", "_=1"] {
            assert!(!Query::default().admits(query), "{query:?}");
        }
    }
}
