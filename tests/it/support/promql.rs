//! The metrics in a scrape of `/metrics`, and the check that a `PromQL` expression uses no others.
//!
//! Expressions are only split into words; promtool checks their syntax. This check shows that every
//! metric, label and label value in them exists.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::Peekable,
    str::Chars,
};

/// Labels that Prometheus adds to all scraped series.
const TARGET: [&str; 2] = ["job", "instance"];

/// Metrics that Prometheus itself writes.
const OWN: [&str; 1] = ["up"];

/// Words before a list of labels.
const LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Words that are neither metrics nor functions.
const OPERATORS: [&str; 6] = ["and", "or", "unless", "bool", "offset", "atan2"];

/// The samples of a scrape by name: label values by label.
#[derive(Debug)]
pub(crate) struct Exposition {
    samples: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
    /// Types of the metric families by name.
    kinds: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

impl Exposition {
    /// Parses `OpenMetrics` 1.0.
    pub(crate) fn parse(text: &str) -> Self {
        let mut exposition = Self { samples: BTreeMap::new(), kinds: BTreeMap::new() };
        for line in text.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a kind");
                exposition.kinds.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                exposition.take_sample(line);
            }
        }
        exposition
    }

    fn take_sample(&mut self, line: &str) {
        let mut tokens = tokens(line).into_iter().peekable();
        let Some(Token::Word(name)) = tokens.next() else { panic!("no sample: {line}") };
        let labels = self.samples.entry(name).or_default();
        if tokens.next_if_eq(&Token::Sign('{')).is_some() {
            for (label, _, value) in matchers(&mut tokens) {
                labels.entry(label).or_default().insert(value);
            }
        }
    }

    /// Returns the families with their labels, under the names used in queries; for a histogram,
    /// the common prefix of its samples.
    pub(crate) fn families(&self) -> BTreeMap<String, BTreeSet<String>> {
        let family = |(name, kind): (&String, &String)| {
            let (queried, sample) = match kind.as_str() {
                "counter" => (format!("{name}_total"), format!("{name}_total")),
                "info" => (format!("{name}_info"), format!("{name}_info")),
                "histogram" => (name.clone(), format!("{name}_count")),
                _ => (name.clone(), name.clone()),
            };
            let labels = self.samples.get(&sample).into_iter().flat_map(BTreeMap::keys);
            (queried, labels.cloned().collect())
        };
        self.kinds.iter().map(family).collect()
    }

    /// Returns an error for anything in an expression that does not exist. Label values may also
    /// occur in `vocabulary`, because most values of some labels have not been used yet at the
    /// start.
    pub(crate) fn check(&self, expression: &str, vocabulary: &str) -> Result<(), String> {
        let mut tokens = tokens(expression).into_iter().peekable();
        let (mut named, mut listed) = (BTreeSet::new(), BTreeSet::new());
        while let Some(token) = tokens.next() {
            match token {
                Token::Sign('[') => while tokens.next().is_some_and(|t| t != Token::Sign(']')) {},
                Token::Sign('{') => return Err("a selector without a metric".into()),
                Token::Word(word) if LISTS.contains(&&*word) => listed.extend(list(&mut tokens)),
                Token::Word(word) if OPERATORS.contains(&&*word) => {}
                Token::Word(word) if word.starts_with(|c: char| c.is_ascii_digit()) => {}
                // A function.
                Token::Word(_) if follows(&mut tokens, '(') || follows_list(&mut tokens) => {}
                Token::Word(metric) => {
                    let labels = self.labels(&metric)?;
                    if tokens.next_if_eq(&Token::Sign('{')).is_some() {
                        self.check_matchers(&metric, matchers(&mut tokens), vocabulary)?;
                    }
                    named.extend(labels);
                }
                Token::Sign(_) | Token::Text(_) => {}
            }
        }
        match listed.difference(&named).next() {
            Some(label) => Err(format!("no metric of this expression has a label {label}")),
            None => Ok(()),
        }
    }

    fn labels(&self, metric: &str) -> Result<BTreeSet<String>, String> {
        let own = OWN.contains(&metric).then(BTreeMap::new);
        let labels = self.samples.get(metric).or(own.as_ref());
        let labels = labels.ok_or_else(|| format!("there is no metric {metric}"))?;
        Ok(labels.keys().cloned().chain(TARGET.map(str::to_owned)).collect())
    }

    fn check_matchers(
        &self,
        metric: &str,
        matchers: Vec<(String, bool, String)>,
        vocabulary: &str,
    ) -> Result<(), String> {
        for (label, is_pattern, value) in matchers {
            if TARGET.contains(&&*label) {
                continue;
            }
            let values = self.samples.get(metric).and_then(|labels| labels.get(&label));
            let values = values.ok_or_else(|| format!("{metric} has no label {label}"))?;
            let words = if is_pattern { value.split('|').collect() } else { vec![value.as_str()] };
            for word in words.into_iter().map(|word| word.trim_end_matches(".*")) {
                if !values.contains(word) && !vocabulary.contains(word) {
                    return Err(format!("{metric} never has {label}=\"{word}\""));
                }
            }
        }
        Ok(())
    }
}

/// Converts a scrape to the older text format that `promtool check metrics` reads.
pub(crate) fn classic(openmetrics: &str) -> String {
    let kinds = Exposition::parse(openmetrics).kinds;
    let line = |line: &str| {
        let comment = line.strip_prefix("# ");
        let Some((keyword, rest)) = comment.and_then(|comment| comment.split_once(' ')) else {
            return (!line.starts_with('#')).then(|| format!("{line}\n"));
        };
        let (name, rest) = rest.split_once(' ')?;
        let (name, rest) = match (kinds.get(name)?.as_str(), keyword) {
            ("counter", _) => (format!("{name}_total"), rest),
            ("info", "TYPE") => (format!("{name}_info"), "gauge"),
            ("info", _) => (format!("{name}_info"), rest),
            _ => (name.to_owned(), rest),
        };
        (keyword != "UNIT").then(|| format!("# {keyword} {name} {rest}\n"))
    };
    openmetrics.lines().filter_map(line).collect()
}

fn follows(tokens: &mut Peekable<impl Iterator<Item = Token>>, sign: char) -> bool {
    tokens.peek() == Some(&Token::Sign(sign))
}

fn follows_list(tokens: &mut Peekable<impl Iterator<Item = Token>>) -> bool {
    matches!(tokens.peek(), Some(Token::Word(word)) if LISTS.contains(&&**word))
}

/// Returns the labels in parentheses; there may be none after `group_left`.
fn list(tokens: &mut Peekable<impl Iterator<Item = Token>>) -> Vec<String> {
    let mut labels = Vec::new();
    if tokens.next_if_eq(&Token::Sign('(')).is_some() {
        while let Some(token) = tokens.next().filter(|token| *token != Token::Sign(')')) {
            if let Token::Word(label) = token {
                labels.push(label);
            }
        }
    }
    labels
}

/// Returns labels and values up to the closing brace, and whether each value is a pattern.
fn matchers(tokens: &mut impl Iterator<Item = Token>) -> Vec<(String, bool, String)> {
    let (mut found, mut label, mut is_pattern) = (Vec::new(), String::new(), false);
    for token in tokens.take_while(|token| *token != Token::Sign('}')) {
        match token {
            Token::Word(word) => (label, is_pattern) = (word, false),
            Token::Sign('~') => is_pattern = true,
            Token::Text(value) => found.push((label.clone(), is_pattern, value)),
            Token::Sign(_) => {}
        }
    }
    found
}

fn tokens(text: &str) -> Vec<Token> {
    let mut chars = text.chars().peekable();
    let mut tokens = Vec::new();
    while let Some(c) = chars.next() {
        match c {
            '"' | '\'' => tokens.push(Token::Text(quoted(&mut chars, c))),
            c if is_word(c) => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| is_word(*c) || *c == '.') {
                    word.push(c);
                }
                tokens.push(Token::Word(word));
            }
            c if c.is_whitespace() => {}
            c => tokens.push(Token::Sign(c)),
        }
    }
    tokens
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '$')
}

fn quoted(chars: &mut Peekable<Chars<'_>>, end: char) -> String {
    let mut text = String::new();
    while let Some(c) = chars.next().filter(|c| *c != end) {
        text.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Exposition, classic};

    const SCRAPE: &str = "\
# HELP jobs_read Reads.
# TYPE jobs_read counter
jobs_read_total{outcome=\"hit\",reason=\"\"} 1
jobs_read_total{outcome=\"miss\",reason=\"a \\\"} b\"} 2
# HELP wait_seconds Waits.
# TYPE wait_seconds histogram
# UNIT wait_seconds seconds
wait_seconds_sum 0.5
wait_seconds_count 1
wait_seconds_bucket{le=\"0.1\"} 0
wait_seconds_bucket{le=\"+Inf\"} 1
# HELP build What runs.
# TYPE build info
build_info{version=\"1\"} 1
# EOF
";

    /// Checks an expression: with an empty `says` it must pass, otherwise the error must contain
    /// `says`.
    #[track_caller]
    fn check(expression: &str, says: &str) {
        let result = Exposition::parse(SCRAPE).check(expression, "documented elsewhere: `pass`");
        match result {
            Ok(()) => assert_eq!(says, "", "{expression}"),
            Err(error) => assert!(!says.is_empty() && error.contains(says), "{error}"),
        }
    }

    #[test]
    fn an_expression_of_what_there_is_passes() {
        for expression in [
            "jobs_read_total",
            "rate(jobs_read_total{outcome=\"hit\", job=~\"$job\"}[$__rate_interval]) > 0.05",
            "sum by (outcome) (increase(jobs_read_total{outcome=~\"hit|pass\",reason!~\"a.*\"}[5m]))",
            "sum(rate(jobs_read_total[5m] offset 1d)) by (reason) / on (job) group_left up == bool 1e3",
            "histogram_quantile(0.99, sum by (le) (rate(wait_seconds_bucket{instance='a'}[1m])))",
            "wait_seconds_sum / wait_seconds_count and on (job, instance) build_info",
            "count by (version) (build_info)",
        ] {
            check(expression, "");
        }
    }

    #[test]
    fn a_name_that_is_not_there_is_found_wherever_it_stands() {
        check("jobs_read", "no metric jobs_read");
        check("sum(rate(jobs_reads_total[5m]))", "no metric jobs_reads_total");
        check("jobs_read_total / jobs_write_total", "no metric jobs_write_total");
        check("rate(wait_seconds_total[5m])", "no metric wait_seconds_total");
        check("jobs_read_total{outcom=\"hit\"}", "no label outcom");
        check("up{job=\"a\", version=\"1\"}", "no label version");
        check("jobs_read_total{outcome=\"hot\"}", "outcome=\"hot\"");
        check("jobs_read_total{outcome=~\"hit|mess\"}", "outcome=\"mess\"");
        check("sum by (outcom) (jobs_read_total)", "a label outcom");
        check("wait_seconds_sum + on (le) wait_seconds_count", "a label le");
        check("{outcome=\"hit\"}", "without a metric");
    }

    #[test]
    fn families_have_the_names_that_they_are_asked_for_by() {
        let families = Exposition::parse(SCRAPE).families();
        let families: Vec<_> =
            families.into_iter().map(|(name, labels)| (name, Vec::from_iter(labels))).collect();
        let [build, reads, waits] = &families[..] else { panic!("{families:?}") };
        assert_eq!(*build, ("build_info".into(), vec!["version".into()]));
        assert_eq!(*reads, ("jobs_read_total".into(), vec!["outcome".into(), "reason".into()]));
        assert_eq!(*waits, ("wait_seconds".into(), Vec::new()));
    }

    #[test]
    fn the_format_of_before_names_counters_with_their_suffix_and_knows_no_units() {
        let text = classic(SCRAPE);
        assert!(text.contains("# TYPE jobs_read_total counter\njobs_read_total{"), "{text}");
        assert!(text.contains("# HELP build_info What runs.\n# TYPE build_info gauge\n"), "{text}");
        assert!(!text.contains("UNIT") && !text.contains("EOF"), "{text}");
    }
}
