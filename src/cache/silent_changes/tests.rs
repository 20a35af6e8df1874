use bytes::Bytes;
use hyper::http::{Request, Response};

use super::*;
use crate::{
    config,
    semantics::{
        audience::Fingerprinter,
        policy::{Freshness, StoredHead},
    },
    store::CredentialKey,
};

/// The TTL of every entry, in ms; longer than all margins together.
const TTL_MS: i64 = 10_000;

fn key(id: &str) -> Key {
    Key::new("job_status:", id)
}

fn caller(token: &str) -> Caller {
    let request = Request::builder().uri("/jobs/7").header("authorization", token).body(());
    let head = request.unwrap().into_parts().0;
    let fingerprinter = Fingerprinter::new(&config::CredentialsConfig::default());
    fingerprinter.caller(&CredentialKey::new([7; 32]), &head.uri, &head.headers)
}

/// The memory, and the time by the store's clock. The clock of this process stands still.
struct Memory {
    changes: SilentChanges,
    now_ms: i64,
}

impl Memory {
    fn new() -> Self {
        Self { changes: SilentChanges::new(Counter::default()), now_ms: 0 }
    }

    fn fill_as(&mut self, id: &str, body: &'static str, who: &str) {
        let head = Response::new(()).into_parts().0;
        let ttl = Duration::from_secs(10);
        let freshness = Freshness { ttl, age: Duration::ZERO, public: false };
        let caller = caller(who);
        let head = StoredHead::of(&head, &[], self.now_ms);
        let entry = Entry::new(head, Bytes::from(body), freshness, caller, self.now_ms);
        let observed = ObservedEntry {
            key: &key(id),
            caller,
            route: "/jobs/{id}",
            entry: &entry,
            now_ms: self.now_ms,
        };
        self.changes.filled(&observed, &Token::named("t"), self.now_ms);
    }

    fn fill(&mut self, id: &str, body: &'static str) {
        self.fill_as(id, body, "a");
    }

    fn expire(&mut self) {
        self.now_ms += TTL_MS + 1;
    }

    /// Makes the entry old enough for a report to be about something else than its fill.
    fn age(&self, id: &str) {
        let mut state = self.changes.lock();
        let known = state.jobs.get_mut(&key(id)).unwrap();
        known.noted_at = known.noted_at.checked_sub(OWN_CHANGE.1).unwrap();
    }

    fn total(&self) -> u64 {
        self.changes.total.get()
    }

    fn is_without_purges(&self) -> bool {
        self.changes.routes().iter().any(|route| route.is_without_purges)
    }

    /// A fill, a change and another fill after the TTL, three times.
    fn change_thrice(&mut self) {
        for body in ["1", "2", "3", "4"] {
            self.fill("x", body);
            self.expire();
        }
    }
}

#[test]
fn another_body_after_the_ttl_is_a_silent_change_and_three_are_worth_a_warning() {
    let mut memory = Memory::new();
    memory.fill("x", "1");
    memory.expire();
    memory.fill("x", "1");
    memory.expire();
    assert_eq!((memory.total(), memory.changes.routes().len()), (0, 0), "it is the same");
    memory.fill("x", "2");
    memory.expire();
    memory.fill("x", "3");
    assert_eq!((memory.total(), memory.is_without_purges()), (2, false));
    memory.expire();
    memory.fill("x", "4");
    let route = SilentRoute { route: "/jobs/{id}".into(), changes: 3, is_without_purges: true };
    assert_eq!(memory.changes.routes(), [route]);
}

#[test]
fn what_a_write_a_purge_or_a_report_explains_is_not_silent() {
    let explain: [fn(&Memory); 7] = [
        |memory| memory.changes.forget(&[key("x")]),
        |memory| memory.changes.purged(&[key("x")]),
        |memory| memory.changes.all_purged(),
        |memory| memory.changes.forget_all(),
        |memory| {
            memory.age("x");
            memory.changes.changed("job_status:x");
        },
        |memory| {
            // The report of the fill, and that of a `DEL` right after it.
            memory.changes.changed("job_status:x");
            memory.changes.changed("job_status:x");
        },
        |memory| memory.changes.lock().jobs.get_mut(&key("x")).unwrap().expires_at_ms += 1_000,
    ];
    for (place, explain) in explain.iter().enumerate() {
        let mut memory = Memory::new();
        memory.fill("x", "1");
        explain(&memory);
        memory.expire();
        memory.fill("x", "2");
        assert_eq!(memory.total(), 0, "{place}");
    }
}

#[test]
fn a_route_with_a_purge_or_a_del_gets_no_warning_and_one_with_a_write_does() {
    let purges: [fn(&mut Memory); 4] = [
        |memory| memory.changes.purged(&[key("unknown")]),
        |memory| memory.changes.all_purged(),
        |memory| {
            memory.fill("y", "1");
            memory.age("y");
            memory.changes.changed("job_status:y");
        },
        |memory| {
            memory.fill("y", "1");
            memory.now_ms += 1_000;
            memory.fill("y", "1");
        },
    ];
    for (place, purge) in purges.iter().enumerate() {
        let mut memory = Memory::new();
        purge(&mut memory);
        memory.change_thrice();
        assert_eq!((memory.total(), memory.is_without_purges()), (3, false), "{place}");
    }
    let mut memory = Memory::new();
    memory.changes.forget(&[key("y")]);
    memory.change_thrice();
    assert!(memory.is_without_purges());
}

#[test]
fn only_the_same_caller_soon_after_the_ttl_is_compared() {
    let mut memory = Memory::new();
    memory.fill_as("x", "1", "a");
    memory.expire();
    memory.fill_as("x", "2", "b");
    memory.expire();
    memory.now_ms += 60_000;
    memory.fill_as("x", "3", "b");
    assert_eq!(memory.total(), 0);
}

#[test]
fn reports_of_the_fill_itself_and_of_the_expiry_spoil_nothing() {
    let mut memory = Memory::new();
    memory.fill("x", "1");
    memory.changes.changed("job_status:x");
    memory.age("x");
    memory.changes.lock().jobs.get_mut(&key("x")).unwrap().expires_at = Instant::now();
    memory.changes.changed("job_status:x");
    memory.expire();
    memory.fill("x", "2");
    assert_eq!(memory.total(), 1);
}

#[test]
fn jobs_are_bounded() {
    let mut memory = Memory::new();
    for n in 0..MAX_JOBS + 10 {
        memory.fill(&n.to_string(), "1");
    }
    assert_eq!(memory.changes.lock().jobs.len(), MAX_JOBS);
}
