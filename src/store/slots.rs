//! Slots: the slot of a key, and the slots of a shard. Pure.

use std::sync::{
    LazyLock,
    atomic::{AtomicU64, Ordering},
};

use super::Key;

/// Number of slots in every cluster.
pub(super) const SLOTS: u16 = 16_384;
/// Words of 64 bits that hold one bit for each slot.
const WORDS: usize = SLOTS as usize / 64;
/// The generator of CRC16/XMODEM, by which the cluster specification hashes keys.
const POLYNOMIAL: u16 = 0x1021;
/// Names that are tried to find one in a slot of the shard. With a single slot of 16,384 owned, the
/// chance to find none is below 10^-27.
const NAMES_TRIED: u32 = 1 << 20;

/// The CRC of every byte.
static TABLE: LazyLock<[u16; 256]> = LazyLock::new(|| {
    let of_bit = |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ POLYNOMIAL };
    let mut bytes = 0..=u8::MAX;
    std::array::from_fn(|_| {
        let byte = bytes.next().unwrap_or_default();
        (0..8).fold(u16::from(byte) << 8, of_bit)
    })
});

/// Returns the slot of a name.
///
/// "In order to implement hash tags, the hash slot for a key is computed in a slightly different
/// way in certain conditions. If the key contains a "{...}" pattern only the substring between {
/// and } is hashed in order to obtain the hash slot." The first `{`, the first `}` after it, and
/// only if there is something in between.
pub(super) fn slot_of(name: &[u8]) -> u16 {
    crc16(tag(name)) % SLOTS
}

/// Returns the slot of a key.
pub(super) fn slot_of_key(key: &Key) -> u16 {
    slot_of(key.main().as_bytes())
}

fn tag(name: &[u8]) -> &[u8] {
    let inner = memchr::memchr(b'{', name).and_then(|open| {
        let rest = name.get(open + 1..)?;
        rest.get(..memchr::memchr(b'}', rest)?)
    });
    inner.filter(|tag| !tag.is_empty()).unwrap_or(name)
}

/// Returns for each slot the smallest number that puts a hash tag into it, if the tag is this text and then
/// the number. Each number costs a single step, because the CRC of all but its last digit is known.
pub(super) fn numbers_by_slot(text: &[u8]) -> Vec<u32> {
    let table = &*TABLE;
    let before = crc16(text);
    let mut numbers = vec![None; usize::from(SLOTS)];
    let mut missing = numbers.len();
    let mut crcs: Vec<u16> = Vec::new();
    for (number, digit) in (0_u32..).zip((b'0'..=b'9').cycle()) {
        if missing == 0 {
            break;
        }
        let leading = number / 10;
        let start = if leading == 0 { before } else { crcs[leading as usize] };
        let crc = crc16_step(table, start, digit);
        crcs.push(crc);
        let found = &mut numbers[usize::from(crc % SLOTS)];
        if found.is_none() {
            *found = Some(number);
            missing -= 1;
        }
    }
    numbers.into_iter().flatten().collect()
}

fn crc16(bytes: &[u8]) -> u16 {
    let table = &*TABLE;
    bytes.iter().fold(0, |crc, byte| crc16_step(table, crc, *byte))
}

fn crc16_step(table: &[u16; 256], crc: u16, byte: u8) -> u16 {
    let [high, _] = crc.to_be_bytes();
    (crc << 8) ^ table[usize::from(high ^ byte)]
}

/// A set of slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotSet([u64; WORDS]);

impl SlotSet {
    pub(super) const NONE: Self = Self([0; WORDS]);
    pub(super) const ALL: Self = Self([u64::MAX; WORDS]);

    pub(super) fn from_fn(mut contains: impl FnMut(u16) -> bool) -> Self {
        let mut first = 0;
        Self(std::array::from_fn(|_| {
            let bits =
                (0..64).filter(|bit| contains(first + bit)).fold(0, |bits, bit| bits | 1 << bit);
            first += 64;
            bits
        }))
    }

    /// The slot of a name, as a set.
    pub(super) fn of_name(name: &[u8]) -> Self {
        let mut set = Self::NONE;
        set.insert(slot_of(name));
        set
    }

    pub(super) fn insert(&mut self, slot: u16) {
        self.0[usize::from(slot / 64)] |= 1 << (slot % 64);
    }

    /// The slots from the first to the last of each range; `None` if a range is invalid.
    pub(super) fn from_ranges(ranges: &[(u16, u16)]) -> Option<Self> {
        let mut set = Self::NONE;
        for (first, last) in ranges {
            if first > last || *last >= SLOTS {
                return None;
            }
            (*first..=*last).for_each(|slot| set.insert(slot));
        }
        Some(set)
    }

    /// First and last slot of each contiguous range.
    pub(super) fn ranges(&self) -> Vec<(u16, u16)> {
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for slot in self.iter() {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == slot => *last = slot,
                _ => ranges.push((slot, slot)),
            }
        }
        ranges
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u16> {
        (0..SLOTS).filter(|slot| self.contains(*slot))
    }

    pub(super) fn contains(&self, slot: u16) -> bool {
        self.0[usize::from(slot / 64)] >> (slot % 64) & 1 == 1
    }

    /// Whether the slot of a name is in the set.
    pub(super) fn contains_name(&self, name: &[u8]) -> bool {
        self.contains(slot_of(name))
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::NONE
    }

    /// Adds the others.
    pub(super) fn insert_all(&mut self, others: &Self) {
        for (word, other) in self.0.iter_mut().zip(others.0) {
            *word |= other;
        }
    }

    /// The slots that are in both sets.
    pub(super) fn intersection(&self, others: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & others.0[word]))
    }

    /// The slots that are not in the other set.
    pub(super) fn difference(&self, others: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & !others.0[word]))
    }
}

/// The slots of one shard. They change at run time, and readers need no lock.
pub(super) struct OwnedSlots([AtomicU64; WORDS]);

impl Default for OwnedSlots {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl OwnedSlots {
    /// Returns the current slots. For the slots of several shards at one point in time, hold the
    /// lock of the slot map.
    pub(super) fn snapshot(&self) -> SlotSet {
        SlotSet(std::array::from_fn(|word| self.0[word].load(Ordering::Acquire)))
    }

    /// Whether the shard owns none.
    pub(super) fn is_empty(&self) -> bool {
        self.snapshot().is_empty()
    }

    /// Whether the shard owns the slot of a name.
    pub(super) fn contains_name(&self, name: &[u8]) -> bool {
        let slot = slot_of(name);
        self.0[usize::from(slot / 64)].load(Ordering::Acquire) >> (slot % 64) & 1 == 1
    }

    /// Replaces the slots.
    pub(super) fn assign(&self, owned: impl FnMut(u16) -> bool) {
        for (word, bits) in self.0.iter().zip(SlotSet::from_fn(owned).0) {
            word.store(bits, Ordering::Release);
        }
    }

    /// Returns a name under the prefix, in braces, in one of the slots: `seed` chooses which.
    /// `None` if there are none.
    pub(super) fn name(&self, prefix: &str, role: &str, seed: u32) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        let names =
            (0..NAMES_TRIED).map(|n| format!("{{{prefix}{}}}:{role}", seed.wrapping_add(n)));
        names.into_iter().find(|name| self.contains_name(name.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slot_of_a_name_is_that_of_the_specification() {
        // The check value of CRC16/XMODEM, and the answers of `CLUSTER KEYSLOT` of Redis 7.0.15.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        for (name, slot) in [
            ("", 0),
            ("foo", 12_182),
            ("{user1000}.following", 3_443),
            ("{user1000}.followers", 3_443),
            ("foo{}{bar}", 8_363),
            ("foo{{bar}}zap", 4_015),
            ("foo{bar}{zap}", 5_061),
            ("{foo", 13_308),
            ("bar", 5_061),
        ] {
            assert_eq!(slot_of(name.as_bytes()), slot, "{name}");
        }
    }

    #[test]
    fn all_keys_of_a_job_are_in_one_slot() {
        let slot = slot_of(b"job_status:8f14e45f");
        for role in ["meta", "lease", "fence"] {
            assert_eq!(slot_of(format!("{{job_status:8f14e45f}}:{role}").as_bytes()), slot);
        }
    }

    #[test]
    fn a_set_is_told_as_ranges_and_read_back() {
        for (expected, set) in [
            (vec![], SlotSet::NONE),
            (vec![(0, SLOTS - 1)], SlotSet::ALL),
            (vec![(0, 0), (63, 64), (SLOTS - 1, SLOTS - 1)], {
                SlotSet::from_fn(|slot| matches!(slot, 0 | 63 | 64) || slot == SLOTS - 1)
            }),
            (vec![(12_182, 12_182)], SlotSet::of_name(b"foo")),
        ] {
            assert_eq!(set.ranges(), expected);
            assert_eq!(SlotSet::from_ranges(&expected), Some(set));
        }
        for none in [(1, 0), (0, SLOTS), (SLOTS, u16::MAX)] {
            assert_eq!(SlotSet::from_ranges(&[(5, 6), none]), None, "{none:?}");
        }
    }

    #[test]
    fn sets_are_added_and_taken_apart() {
        let (mut low, odd) =
            (SlotSet::from_fn(|slot| slot < 100), SlotSet::from_fn(|slot| slot % 2 == 1));
        assert_eq!(low.intersection(&odd).iter().count(), 50);
        assert_eq!(low.difference(&odd).ranges()[..2], [(0, 0), (2, 2)]);
        low.insert_all(&odd);
        assert!(low.contains(4) && low.contains(SLOTS - 1) && !low.contains(100));
        assert!(SlotSet::ALL.difference(&SlotSet::ALL).is_empty());
    }

    #[test]
    fn a_name_is_found_for_whatever_a_shard_owns() {
        let slots = OwnedSlots::default();
        assert_eq!(slots.name("job_status:", "barrier", 0), None);
        for only in [0, 63, 64, 9_999, SLOTS - 1] {
            slots.assign(|slot| slot == only);
            assert_eq!(slots.snapshot().ranges(), [(only, only)]);
            let name = slots.name("job_status:", "barrier", 7).unwrap();
            assert_eq!(slot_of(name.as_bytes()), only, "{name}");
            assert!(name.starts_with("{job_status:") && name.ends_with("}:barrier"), "{name}");
        }
    }
}
