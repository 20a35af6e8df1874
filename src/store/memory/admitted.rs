//! The audience of an entry with one more caller, as in `lua/admit.lua`. Pure.

use crate::store::words::MAX_PAIRS_OF_CREDENTIAL;

/// Returns meta with this caller in its audience: renewed in its place, else added in front. Then it may
/// replace the oldest of its credential, as in `admit.lua`.
pub(super) fn admitted(meta: &str, caller: &str, served_at_ms: i64) -> String {
    /// Hexadecimal digits of a credential, which is the first half of a caller.
    const CREDENTIAL_DIGITS: usize = 32;
    // Every meta has an audience, and its members contain no bracket.
    let Some((before, rest)) = meta.split_once("\"audience\":[") else { return meta.to_owned() };
    let Some((list, after)) = rest.split_once(']') else { return meta.to_owned() };
    let members = list.split(',').map(|member| member.trim_matches('"'));
    let mut members: Vec<&str> = members.filter(|member| !member.is_empty()).collect();
    let member = format!("{caller}@{served_at_ms}");
    if let Some(own) = members.iter_mut().find(|member| member.split('@').next() == Some(caller)) {
        *own = &member;
    } else {
        let credential = caller.get(..CREDENTIAL_DIGITS).unwrap_or(caller);
        let served = |at: &usize| {
            let time = members[*at].split_once('@').and_then(|(_, ms)| ms.parse::<i64>().ok());
            // Newer members come first.
            (time.unwrap_or(0), std::cmp::Reverse(*at))
        };
        let of_credential = |at: &usize| members[*at].starts_with(credential);
        let mut own: Vec<usize> = (0..members.len()).filter(of_credential).collect();
        own.sort_by_key(served);
        own.truncate((own.len() + 1).saturating_sub(MAX_PAIRS_OF_CREDENTIAL));
        own.sort_unstable();
        for at in own.into_iter().rev() {
            members.remove(at);
        }
        members.insert(0, &member);
    }
    format!("{before}\"audience\":[\"{}\"]{after}", members.join("\",\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_holds_at_most_eight_pairs_and_the_next_one_replaces_its_oldest() {
        let limit = format!("local most = {MAX_PAIRS_OF_CREDENTIAL}\n");
        assert!(include_str!("../lua/admit.lua").contains(&limit), "the script has another limit");
        let caller = |who: char, n: usize| format!("{}{n:032x}", who.to_string().repeat(32));
        let mut meta = format!("{{\"audience\":[\"{}@5\"],\"x\":[1]}}", caller('b', 0));
        // The second pair is renewed, so that the third is the oldest after the first.
        for (n, time) in [0, 1, 2, 3, 4, 5, 6, 7, 1, 8, 9].into_iter().zip(0..) {
            meta = admitted(&meta, &caller('a', n), time);
        }
        let parsed: serde_json::Value = serde_json::from_str(&meta).unwrap();
        let members: Vec<_> = parsed["audience"].as_array().unwrap().iter().collect();
        assert_eq!(members.len(), 9, "{meta}");
        for (n, held) in [(0, false), (1, true), (2, false), (3, true), (8, true), (9, true)] {
            assert_eq!(meta.contains(&caller('a', n)), held, "{n}: {meta}");
        }
        assert!(meta.contains(&format!("{}@5", caller('b', 0))) && meta.ends_with(",\"x\":[1]}"));
    }
}
