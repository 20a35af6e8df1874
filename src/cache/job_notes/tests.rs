use hyper::http::Request;

use super::*;
use crate::{config::CredentialsConfig, store::CredentialKey};

fn job(id: &str) -> Key {
    Key::new("job_status:", id)
}

fn name(name: &str) -> HeaderName {
    name.parse().unwrap()
}

fn credential(token: &str) -> Fingerprint {
    let request = Request::get("/").header("authorization", token).body(()).unwrap();
    let fingerprinter = Fingerprinter::new(&CredentialsConfig::default());
    let key = CredentialKey::new([7; 32]);
    fingerprinter.caller(&key, request.uri(), request.headers()).credential()
}

fn note(splits: &SplittingHeaders, id: &str, header: &str, value: &str, now: Instant) -> bool {
    let headers = std::iter::once((name(header), value.as_bytes()));
    !splits.note(&job(id), credential("a"), headers, now).is_empty()
}

#[test]
fn eight_values_within_an_hour_split_the_callers_of_a_job() {
    let (splits, now) = (SplittingHeaders::default(), Instant::now());
    for n in 0..7 {
        assert!(!note(&splits, "x", "x-nonce", &n.to_string(), now));
        assert!(!note(&splits, "x", "x-nonce", "0", now), "a value counts once");
    }
    assert!(!note(&splits, "y", "x-nonce", "7", now), "that is another job");
    let headers = || std::iter::once((name("x-nonce"), b"7".as_slice()));
    let other = splits.note(&job("x"), credential("b"), headers(), now);
    assert!(other.is_empty(), "that is another credential");
    assert_eq!(splits.of_job(&job("x"), now), Vec::<String>::new());
    assert!(note(&splits, "x", "x-nonce", "7", now));
    assert_eq!(splits.of_job(&job("x"), now), ["x-nonce"]);
    assert_eq!(splits.of_job(&job("y"), now), Vec::<String>::new());
    let later = now + WINDOW;
    assert_eq!(splits.of_job(&job("x"), later), Vec::<String>::new());
    assert!(!note(&splits, "x", "x-nonce", "8", later), "the window has begun again");
}

#[test]
fn the_lines_of_one_header_are_one_value() {
    let (splits, now) = (SplittingHeaders::default(), Instant::now());
    let values: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let headers = values.iter().map(|value| (name("x-list"), value.as_bytes()));
    assert!(splits.note(&job("x"), credential("a"), headers, now).is_empty());
}

#[test]
fn names_and_groups_are_bounded_and_constant_headers_make_way() {
    let (splits, now) = (SplittingHeaders::default(), Instant::now());
    for n in 0..2 {
        note(&splits, "x", "x-nonce", &n.to_string(), now);
    }
    for n in 0..1_000 {
        note(&splits, "x", &format!("x-{n}"), "constant", now);
        note(&splits, &n.to_string(), "x-nonce", "0", now);
    }
    note(&splits, "x", &"x".repeat(MAX_NAME_BYTES + 1), "", now);
    {
        let names = splits.names();
        assert!(names.len() <= MAX_NAMES && names[&name("x-nonce")].len() <= MAX_GROUPS);
        assert!(names.keys().all(|name| name.as_str().len() <= MAX_NAME_BYTES));
    }
    for n in 2..SPLITTING_VALUES {
        note(&splits, "x", "x-nonce", &n.to_string(), now);
    }
    assert_eq!(splits.of_job(&job("x"), now), ["x-nonce"]);
    let later = now + IDLE_TIME * 2;
    for n in 0..SPLITTING_VALUES {
        note(&splits, "late", "x-nonce", &n.to_string(), later);
    }
    assert_eq!(splits.of_job(&job("late"), later), ["x-nonce"], "idle groups make way");
}

#[test]
fn marks_count_within_their_window_and_are_forgotten_after_it() {
    let counts = WindowedCounts::new(Duration::from_mins(1));
    assert_eq!((counts.count(&1), counts.add(1), counts.add(1), counts.count(&1)), (0, 1, 2, 2));
    assert_eq!((counts.keys(|key| *key == 1), counts.keys(|key| *key == 2)), (vec![1], vec![]));
    let short = WindowedCounts::new(Duration::ZERO);
    assert_eq!((short.add(1), short.add(1), short.count(&1)), (1, 1, 0));
}

#[test]
fn marks_are_bounded() {
    let counts = WindowedCounts::new(Duration::from_mins(1));
    for key in 0..3 * MAX_KEYS {
        counts.add(key);
    }
    assert!(counts.counts.lock().unwrap().len() <= MAX_KEYS);
}

#[test]
fn names_are_remembered_for_a_while_and_are_bounded() {
    let warnings = HourlyPerName::default();
    let kept = JobNotes::new(Duration::from_mins(1));
    let key = |id: usize| Key::new("job_status:", &id.to_string());
    let note =
        |notes: &JobNotes, id, names| notes.note_differing(&warnings, (&key(id), "7"), names);
    let pod = HeaderName::from_static("x-pod");
    note(&kept, 1, vec![pod.clone(), pod.clone()]);
    assert_eq!(kept.differing_headers(&key(1)), [pod.as_str()]);
    assert!(kept.differing_headers(&key(2)).is_empty());
    note(&kept, 1, (0..20).map(|n| format!("x-{n}").parse().unwrap()).collect());
    assert_eq!(kept.differing_headers(&key(1)).len(), MAX_DIFFERING);
    for id in 0..3 * MAX_KEYS {
        note(&kept, id, vec![pod.clone()]);
    }
    assert!(kept.differing_headers.counts.lock().unwrap().len() <= MAX_KEYS);
    let short = JobNotes::new(Duration::ZERO);
    note(&short, 1, vec![pod]);
    assert!(short.differing_headers(&key(1)).is_empty());
}
