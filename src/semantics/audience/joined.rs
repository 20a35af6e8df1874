//! The audience of an entry that takes the place of an older one with the same response.

use super::MAX_PAIRS_OF_CREDENTIAL;
use super::{Audience, AudienceMember, Caller};

impl Audience {
    /// Returns the members together with a caller that the upstream has just served. A credential with
    /// too many members loses its own oldest one.
    pub fn joined_by(&self, caller: Caller, served_at_ms: i64) -> Vec<AudienceMember> {
        let others = self.members.iter().filter(|member| member.caller != caller);
        let mut members: Vec<_> =
            [AudienceMember { caller, served_at_ms }].into_iter().chain(others.copied()).collect();
        let is_own = |member: &AudienceMember| member.caller.credential == caller.credential;
        if members.iter().filter(|member| is_own(member)).count() > MAX_PAIRS_OF_CREDENTIAL {
            let own = members.iter().enumerate().skip(1).filter(|(_, member)| is_own(member));
            if let Some((at, _)) = own.min_by_key(|(_, member)| member.served_at_ms) {
                members.remove(at);
            }
        }
        members
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Fingerprint, *};

    fn caller(credential: u8, variant: u8) -> Caller {
        Caller { credential: Fingerprint([credential; 16]), variant: Fingerprint([variant; 16]) }
    }

    #[test]
    fn a_caller_joins_once_and_pushes_out_its_own_oldest_variant_only() {
        let mut audience = Audience::of(caller(1, 0), false, 5);
        let mut join = |who, at| {
            audience.members = audience.joined_by(who, at).into();
            let times = audience.members.iter().map(|member| member.served_at_ms);
            times.collect::<Vec<_>>()
        };
        assert_eq!(join(caller(2, 0), 6), [6, 5]);
        assert_eq!(join(caller(1, 0), 7), [7, 6]);
        for variant in 1..8 {
            join(caller(1, variant), 7 + i64::from(variant));
        }
        assert_eq!(join(caller(1, 8), 20), [20, 14, 13, 12, 11, 10, 9, 8, 6]);
    }
}
