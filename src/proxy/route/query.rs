//! Query parameters that do not change the answer.
//!
//! Frameworks differ in how they read a query: `;` separates for some, the case of a name counts or
//! not, `_[a]` is `_` to others. So a query is recognised narrowly: a doubt costs a miss.

use percent_encoding::percent_decode_str;

/// Names of parameters that the upstream does not look at, such as cache busters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ignored(Vec<String>);

impl Ignored {
    pub(super) fn new(names: &[String]) -> Self {
        Self(names.to_vec())
    }

    /// Whether a query consists of nothing but these parameters. An empty one does not.
    pub(super) fn covers(&self, query: &str) -> bool {
        !query.contains(';') && query.split('&').all(|parameter| self.names(parameter))
    }

    fn names(&self, parameter: &str) -> bool {
        let name = parameter.split('=').next().unwrap_or_default();
        self.0.iter().any(|ignored| percent_decode_str(name).eq(ignored.bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::Ignored;

    #[track_caller]
    fn check(query: &str, want: bool) {
        let ignored = Ignored::new(&["_".to_owned(), "utm_source".to_owned()]);
        assert_eq!(ignored.covers(query), want, "{query:?}");
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
        // Names are compared as they stand, whatever the upstream makes of case and spaces.
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
            assert!(!Ignored::default().covers(query), "{query:?}");
        }
    }
}
