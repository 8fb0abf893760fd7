//! Maglev consistent hashing (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! The table depends on nothing but the backends' addresses and ports, so every node of a cluster
//! builds the same one: a packet that reaches another node, or loses its flow entry, still finds
//! the backend that it had.

use core::net::SocketAddr;

/// Table entries per backend that keep the imbalance near one percent (the paper's M ≥ 100·N).
const ENTRIES_PER_BACKEND: u32 = 100;

/// Longest table (a prime, Katran's and Cilium's upper bound): 512 KiB.
const LONGEST: u32 = 131_071;

/// Length of the table for this many backends; a prime, or at most 1 when there is nothing to hash.
///
/// Backends are counted in powers of two, so that the table keeps its length, and most of its
/// entries, while a Service grows and shrinks a little. Beyond half of [`LONGEST`] backends a
/// table can't give each a fair share: 0, the caller hashes over the plain list.
pub fn table_len(backends: u32) -> u32 {
    match backends {
        0 | 1 => backends,
        2..=1024 => next_prime(backends.next_power_of_two() * ENTRIES_PER_BACKEND),
        _ if backends <= LONGEST / 2 => LONGEST,
        _ => 0,
    }
}

/// Fills `table` with positions in `backends`. Its length must come from [`table_len`] (a prime).
///
/// `next` is scratch space of the same length as `backends`.
pub fn fill(table: &mut [u32], backends: &[SocketAddr], next: &mut [(u32, u32)]) {
    const FREE: u32 = u32::MAX;
    let len = table.len() as u32;
    if len == 0 || backends.is_empty() {
        return;
    }
    if backends.len() == 1 || len == 1 {
        table.fill(0);
        return;
    }
    for (state, backend) in next.iter_mut().zip(backends) {
        let (first, second) = hashes(backend);
        *state = (first % len, second % (len - 1) + 1);
    }
    table.fill(FREE);
    let mut filled = 0;
    loop {
        for (index, (position, skip)) in next.iter_mut().enumerate() {
            let mut candidate = *position;
            // Each backend visits all positions (the length is prime), so a free one is found.
            while table.get(candidate as usize).is_some_and(|entry| *entry != FREE) {
                candidate = step(candidate, *skip, len);
            }
            if let Some(entry) = table.get_mut(candidate as usize) {
                *entry = index as u32;
            }
            *position = step(candidate, *skip, len);
            filled += 1;
            if filled == len {
                return;
            }
        }
    }
}

const fn step(position: u32, skip: u32, len: u32) -> u32 {
    ((position as u64 + skip as u64) % len as u64) as u32
}

fn hashes(backend: &SocketAddr) -> (u32, u32) {
    let address = crate::abi::Address::from(backend.ip()).words();
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ backend.port() as u64;
    for word in address {
        state = mix(state ^ u32::from_be(word) as u64);
    }
    (state as u32, (state >> 32) as u32)
}

/// The finalizer of SplitMix64 (Steele et al., 2014).
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn next_prime(from: u32) -> u32 {
    let mut candidate = from | 1;
    while !is_prime(candidate) {
        candidate += 2;
    }
    candidate
}

fn is_prime(number: u32) -> bool {
    let mut divisor = 3;
    while divisor * divisor <= number {
        if number.is_multiple_of(divisor) {
            return false;
        }
        divisor += 2;
    }
    number > 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(count: u16) -> Vec<SocketAddr> {
        (0..count).map(|i| SocketAddr::from(([10, 244, (i >> 8) as u8, i as u8], 8080))).collect()
    }

    fn table(backends: &[SocketAddr], len: u32) -> Vec<SocketAddr> {
        let mut table = vec![0; len as usize];
        fill(&mut table, backends, &mut vec![(0, 0); backends.len()]);
        table.iter().map(|i| backends[*i as usize]).collect()
    }

    #[test]
    fn the_length_is_a_prime_with_a_hundred_entries_per_backend_up_to_a_bound() {
        assert_eq!(
            [0, 1, 2, 9, 16, 1024, 1025, 65_535, 65_536].map(table_len),
            [0, 1, 211, 1601, 1601, 102_407, 131_071, 131_071, 0]
        );
    }

    #[test]
    fn every_backend_gets_its_share_within_two_entries() {
        let all = backends(10);
        let filled = table(&all, table_len(10));
        for backend in &all {
            let share = filled.iter().filter(|b| *b == backend).count();
            assert!((160..=162).contains(&share), "{backend} has {share}");
        }
    }

    #[test]
    fn the_order_in_which_a_node_learned_of_the_backends_hardly_matters() {
        let all = backends(10);
        let mut reversed = all.clone();
        reversed.reverse();
        let same =
            table(&all, 1601).iter().zip(table(&reversed, 1601)).filter(|(a, b)| *a == b).count();
        assert!(same > 1500, "{same} of 1601");
    }

    #[test]
    fn losing_one_backend_moves_few_entries_of_the_others() {
        let all = backends(10);
        let before = table(&all, 1601);
        let after = table(&all[1..], 1601);
        let moved = before.iter().zip(&after).filter(|(b, a)| **b != all[0] && b != a).count();
        assert!(moved < 130, "{moved} of 1440 moved");
    }
}
