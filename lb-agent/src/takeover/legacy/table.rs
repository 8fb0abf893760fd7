//! One table of the old iptables as a program gets it from the kernel, and the same table without some
//! chains (include/uapi/linux/netfilter/x_tables.h, netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h).
//!
//! A table is one row of entries. A chain of a hook begins where the hook says and ends with its policy; a
//! chain with a name begins with an entry whose target is `ERROR` and says the name. Jumps are distances from
//! the table's beginning, so taking entries out moves everything behind them.

/// Hooks of netfilter.
pub const HOOKS: usize = 5;
/// `struct xt_entry_target` without data.
const TARGET: usize = 32;
/// Where a target has its name, and how long that is.
const TARGET_NAME: std::ops::Range<usize> = 2..31;
/// The data of a standard target, its verdict, and of `ERROR`, a chain's name.
const DATA: usize = TARGET;
const CHAIN_NAME: usize = 30;
const ERROR: &str = "ERROR";
/// The kernel's alignment of entries.
const ALIGNMENT: usize = 8;

/// Where an entry of a family has what we look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where its target is, from its own beginning: two bytes.
    target_offset: usize,
    /// How long it is: two bytes.
    next_offset: usize,
    /// `struct ipt_entry` or `struct ip6t_entry` without matches and target.
    size: usize,
}

/// `struct ipt_entry`.
pub const IPV4: Layout = Layout { target_offset: 88, next_offset: 90, size: 112 };
/// `struct ip6t_entry`.
pub const IPV6: Layout = Layout { target_offset: 140, next_offset: 142, size: 168 };

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// A bit for each hook that it has a chain for.
    pub valid_hooks: u32,
    /// Where these chains begin.
    pub hook_entries: [u32; HOOKS],
    /// Where their policies are.
    pub underflows: [u32; HOOKS],
    /// The number of entries.
    pub number: u32,
    /// These.
    pub entries: Vec<u8>,
}

/// A table without chains that nobody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Without {
    /// What is left.
    pub table: Table,
    /// Which of the old entries that is.
    pub kept: Vec<usize>,
    /// So many chains are gone.
    pub chains: usize,
    /// So many rules of other chains, which jumped to them.
    pub jumps: usize,
}

/// Something in a table that the kernel wouldn't have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub struct OddTable {
    what: &'static str,
    at: usize,
}

fn odd(what: &'static str, at: usize) -> OddTable {
    OddTable { what, at }
}

/// What an entry's target is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    /// Begins a chain of this name.
    Chain(String),
    /// A verdict, or where to go on.
    Verdict(i32),
    /// Something else, an extension.
    Other,
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry<'a> {
    offset: usize,
    bytes: &'a [u8],
    /// Where its target is in these.
    target_offset: usize,
    target: Target,
}

impl<'a> Entry<'a> {
    /// The first one of `rest`, which begins at `offset` of the table.
    fn parse(layout: Layout, offset: usize, rest: &'a [u8]) -> Result<Self, OddTable> {
        let short = || odd("an entry without an end", offset);
        let target_offset = number(rest, layout.target_offset).ok_or_else(short)?;
        let bytes = number(rest, layout.next_offset).and_then(|length| rest.get(..length));
        let bytes = bytes.filter(|bytes| bytes.len() % ALIGNMENT == 0).ok_or_else(short)?;
        let target = bytes.get(target_offset..).filter(|_| target_offset >= layout.size);
        let target = target.ok_or_else(|| odd("an entry without a target", offset))?;
        let target =
            parse_target(target).ok_or_else(|| odd("an entry with half a target", offset))?;
        Ok(Self { offset, bytes, target_offset, target })
    }

    fn end(&self) -> usize {
        self.offset + self.bytes.len()
    }

    /// Where it goes on, if that is somewhere in the table.
    fn jump(&self) -> Option<usize> {
        match self.target {
            Target::Verdict(to) => usize::try_from(to).ok(),
            Target::Chain(_) | Target::Other => None,
        }
    }
}

fn parse_target(target: &[u8]) -> Option<Target> {
    let size = number(target, 0)?;
    let target = target.get(..size)?;
    Some(match name_of(target)? {
        "" => Target::Verdict(i32::from_ne_bytes(*target.get(DATA..)?.first_chunk()?)),
        ERROR => Target::Chain(text(target.get(DATA..DATA + CHAIN_NAME)?)?.to_owned()),
        _ => Target::Other,
    })
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes).into())
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
}

/// The name of a match or a target.
fn name_of(extension: &[u8]) -> Option<&str> {
    text(extension.get(TARGET_NAME)?)
}

/// What becomes of each entry.
struct Plan<'a> {
    entries: Vec<Entry<'a>>,
    /// Where each will be, or what comes behind it where it goes.
    moved_to: Vec<usize>,
    is_kept: Vec<bool>,
}

impl<'a> Plan<'a> {
    /// Keeps what is in no unwanted chain and jumps to none; how many jumps go besides.
    fn make(entries: Vec<Entry<'a>>, is_in_unwanted: &[bool]) -> Result<(Self, usize), OddTable> {
        let mut plan = Self { entries, moved_to: Vec::new(), is_kept: Vec::new() };
        let (mut jumps, mut end) = (0, 0);
        for (entry, is_in) in plan.entries.iter().zip(is_in_unwanted) {
            let jumps_there = match entry.jump() {
                Some(to) if to != entry.end() => {
                    let there = plan.find(to).and_then(|index| is_in_unwanted.get(index));
                    *there.ok_or_else(|| odd("a jump to nowhere", entry.offset))?
                }
                _ => false,
            };
            jumps += usize::from(jumps_there && !is_in);
            let is_kept = !is_in && !jumps_there;
            plan.moved_to.push(end);
            plan.is_kept.push(is_kept);
            end += if is_kept { entry.bytes.len() } else { 0 };
        }
        Ok((plan, jumps))
    }

    fn find(&self, offset: usize) -> Option<usize> {
        self.entries.binary_search_by_key(&offset, |entry| entry.offset).ok()
    }

    /// Where what is at `offset` now, or what comes behind it, will be.
    fn moved_to(&self, offset: u32) -> Option<u32> {
        let index = self.find(usize::try_from(offset).ok()?)?;
        u32::try_from(*self.moved_to.get(index)?).ok()
    }

    fn keeps(&self, offset: u32) -> bool {
        let index = usize::try_from(offset).ok().and_then(|offset| self.find(offset));
        index.and_then(|index| self.is_kept.get(index)).copied().unwrap_or_default()
    }
}

impl Table {
    /// This table without the chains whose name is unwanted, and without rules that jump to them.
    pub fn without(
        &self,
        layout: Layout,
        is_unwanted: impl Fn(&str) -> bool,
    ) -> Result<Without, OddTable> {
        let entries = self.parse(layout)?;
        let mut chains = 0;
        let mut is_in_unwanted = Vec::with_capacity(entries.len());
        let mut is_in = false;
        for entry in &entries {
            if let Target::Chain(name) = &entry.target {
                is_in = is_unwanted(name);
                chains += usize::from(is_in);
            } else if self.begins_at(entry.offset) {
                is_in = false;
            }
            is_in_unwanted.push(is_in);
        }
        let (plan, jumps) = Plan::make(entries, &is_in_unwanted)?;
        let table = self.moved(&plan)?;
        let kept = plan.is_kept.iter().enumerate().filter(|(_, kept)| **kept);
        let kept = kept.map(|(index, _)| index).collect();
        Ok(Without { table, kept, chains, jumps })
    }

    /// Whether any rule has a match or a target with such a name.
    pub fn has_extension(
        &self,
        layout: Layout,
        is_it: impl Fn(&str) -> bool,
    ) -> Result<bool, OddTable> {
        for entry in self.parse(layout)? {
            let (mut matches, target) =
                entry.bytes.split_at_checked(entry.target_offset).unwrap_or_default();
            matches = matches.get(layout.size..).unwrap_or_default();
            if name_of(target).is_some_and(&is_it) {
                return Ok(true);
            }
            // `struct xt_entry_match` begins as a target does.
            while !matches.is_empty() {
                let size = number(matches, 0).filter(|size| *size >= TARGET);
                let rest = size.and_then(|size| matches.get(size..));
                let rest = rest.ok_or_else(|| odd("half a match", entry.offset))?;
                if name_of(matches).is_some_and(&is_it) {
                    return Ok(true);
                }
                matches = rest;
            }
        }
        Ok(false)
    }

    fn parse(&self, layout: Layout) -> Result<Vec<Entry<'_>>, OddTable> {
        let mut entries = Vec::new();
        let mut offset = 0;
        while let Some(rest) = self.entries.get(offset..).filter(|rest| !rest.is_empty()) {
            let entry = Entry::parse(layout, offset, rest)?;
            offset = entry.end();
            entries.push(entry);
        }
        if u32::try_from(entries.len()) != Ok(self.number) {
            return Err(odd("another number of entries", offset));
        }
        Ok(entries)
    }

    fn hooks(&self) -> impl Iterator<Item = usize> {
        (0..HOOKS).filter(|hook| self.valid_hooks & 1 << hook != 0)
    }

    fn begins_at(&self, offset: usize) -> bool {
        let begins = |hook: usize| self.hook_entries.get(hook).map(|at| *at as usize);
        self.hooks().any(|hook| begins(hook) == Some(offset))
    }

    fn moved(&self, plan: &Plan<'_>) -> Result<Self, OddTable> {
        let mut moved = Self { number: 0, entries: Vec::new(), ..self.clone() };
        for hook in self.hooks() {
            let places = [&mut moved.hook_entries, &mut moved.underflows];
            let [begin, policy] = places.map(|places| places.get_mut(hook));
            let (Some(begin), Some(policy)) = (begin, policy) else { continue };
            let missing = |at: u32| odd("no chain of a hook", at as usize);
            if !plan.keeps(*policy) {
                return Err(missing(*policy));
            }
            *begin = plan.moved_to(*begin).ok_or_else(|| missing(*begin))?;
            *policy = plan.moved_to(*policy).ok_or_else(|| missing(*policy))?;
        }
        for (entry, _) in plan.entries.iter().zip(&plan.is_kept).filter(|(_, kept)| **kept) {
            let verdict = match entry.jump() {
                // "Go on", for a rule without a target.
                Some(to) if to == entry.end() => Some(moved.entries.len() + entry.bytes.len()),
                Some(to) => plan.find(to).and_then(|index| plan.moved_to.get(index).copied()),
                None => None,
            };
            let at = moved.entries.len() + entry.target_offset + DATA;
            moved.entries.extend_from_slice(entry.bytes);
            if let Some(verdict) = verdict {
                let wrong = || odd("a jump to nowhere", entry.offset);
                let verdict = i32::try_from(verdict).map_err(|_| wrong())?;
                let place = moved.entries.get_mut(at..).and_then(<[u8]>::first_chunk_mut);
                *place.ok_or_else(wrong)? = verdict.to_ne_bytes();
            }
            moved.number += 1;
        }
        Ok(moved)
    }
}
