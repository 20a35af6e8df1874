//! The callers of a history: who polls, and how the upstream tells them apart.
//!
//! No sidecar knows the names of these headers, apart from `Authorization`.

use hyper::HeaderMap;

/// The place of a caller in [`CALLERS`].
pub(super) type Caller = u8;

/// The number of [`CALLERS`].
pub(super) const EVERYONE: Caller = 8;

/// The caller without any identity.
pub(super) const ANONYMOUS: Caller = 0;

/// A header that names users. A sidecar that ignores it leaks.
pub(super) const MADE_UP: &str = "x-made-up-identity";

/// The headers of each caller. The last two have one token and work for two organisations.
pub(super) const CALLERS: [&[(&str, &str)]; EVERYONE as usize] = [
    &[],
    &[("x-consumer-username", "alice")],
    &[("x-consumer-username", "bob")],
    &[("tailscale-user-login", "alice@example.com")],
    &[(MADE_UP, "carol")],
    &[(MADE_UP, "dave")],
    &[("authorization", "Bearer shared-token"), ("x-org-id", "north")],
    &[("authorization", "Bearer shared-token"), ("x-org-id", "south")],
];

/// Returns the caller with exactly these identity headers.
pub(super) fn caller(headers: &HeaderMap) -> Caller {
    let has = |(name, value): &(&str, &str)| headers.get(*name).is_some_and(|it| it == value);
    let fitting = CALLERS.iter().enumerate().filter(|(_, needed)| needed.iter().all(has));
    let most = fitting.max_by_key(|(_, needed)| needed.len()).expect("an anonymous caller");
    Caller::try_from(most.0).expect("few callers")
}

/// Whether each caller has a view of its own of this job: its body names the caller.
pub(super) fn is_personal(job: u16) -> bool {
    job % 4 == 3
}

/// Draws callers for one client: usually its own.
pub(super) struct CallerPicker {
    own: Caller,
    callers: Caller,
}

impl CallerPicker {
    /// Returns the callers of a client by its place among the clients. Of so many clients one is
    /// named, and each caller has one in turn. The others are anonymous.
    pub(super) fn new(client: usize, one_in: usize, callers: Caller) -> Self {
        let is_named = client.is_multiple_of(one_in);
        let turn = Caller::try_from(client / one_in % usize::from(callers)).expect("few callers");
        Self { own: if is_named { turn } else { ANONYMOUS }, callers }
    }

    pub(super) fn draw(&self, rng: &mut fastrand::Rng) -> Caller {
        if rng.u8(..32) == 0 { rng.u8(..self.callers) } else { self.own }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_caller_is_told_by_its_headers() {
        for (place, headers) in CALLERS.iter().enumerate() {
            let mut map = HeaderMap::new();
            for (name, value) in *headers {
                map.insert(*name, value.parse().expect("a value"));
            }
            assert_eq!(usize::from(caller(&map)), place);
        }
    }
}
