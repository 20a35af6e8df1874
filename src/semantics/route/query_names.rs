//! Query names: the parameters of a query by which a write may name jobs.

use percent_encoding::percent_decode_str;

/// Returns the parameters of a query as it was sent, each as name and value. A parameter without a
/// `=` is a value without a name.
pub(super) fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.split(['&', ';']).filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or(("", pair)))
}

/// Whether a parameter has one of these names, in any letter case. `ids[]` and `ids[0]` are lists
/// named `ids`.
pub(super) fn is_named<S: AsRef<str>>(name: &str, names: &[S]) -> bool {
    let decoded = percent_decode_str(name).decode_utf8_lossy();
    let name = decoded.split('[').next().unwrap_or_default();
    names.iter().any(|given| given.as_ref().eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::{is_named, parameters};

    #[test]
    fn a_query_is_read_as_names_and_values() {
        let got: Vec<_> = parameters("id=7&ids=8;x&a=b=c&").collect();
        assert_eq!(got, [("id", "7"), ("ids", "8"), ("", "x"), ("a", "b=c")]);
    }

    #[test]
    fn a_name_counts_encoded_and_as_a_list() {
        let names = ["ids".to_owned()];
        for name in ["ids", "Ids", "ids[]", "ids%5B0%5D", "%69ds"] {
            assert!(is_named(name, &names), "{name}");
        }
        for name in ["", "id", "idsx"] {
            assert!(!is_named(name, &names), "{name}");
        }
    }
}
