use proptest::prelude::*;

use super::table::{HOOKS, IPV4, IPV6, Layout, Table, Without};

/// `XT_RETURN`, as every chain with a name ends.
const RETURN: i32 = -5;
/// `-NF_ACCEPT - 1`.
const ACCEPT: i32 = -2;
/// Hooks of the table nat: all but FORWARD.
const NAT: [usize; 4] = [0, 1, 3, 4];

/// What a rule does.
#[derive(Clone, Debug, PartialEq)]
enum Action {
    /// Jumps to the chain of this number.
    Jump(usize),
    Verdict(i32),
    /// Nothing: it counts.
    Nothing,
    /// A target with so many bytes of data.
    Extension(usize),
}

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    /// Bytes of matches.
    matches: usize,
    action: Action,
    /// Its counters, which it is known by.
    counters: u64,
}

/// A table as people see it.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    hooks: Vec<Vec<Rule>>,
    chains: Vec<(String, Vec<Rule>)>,
}

fn is_unwanted(name: &str) -> bool {
    name.starts_with("KUBE-")
}

impl Model {
    /// What a person would delete.
    fn without_unwanted(&self) -> Self {
        let keeps = |rule: &&Rule| match rule.action {
            Action::Jump(to) => !is_unwanted(&self.chains[to].0),
            _ => true,
        };
        let kept: Vec<_> =
            (0..self.chains.len()).filter(|at| !is_unwanted(&self.chains[*at].0)).collect();
        let renumbered = |rule: &Rule| match rule.action {
            Action::Jump(to) => {
                let to = kept.iter().position(|at| *at == to).unwrap();
                Rule { action: Action::Jump(to), ..rule.clone() }
            }
            _ => rule.clone(),
        };
        let rules = |rules: &Vec<Rule>| rules.iter().filter(keeps).map(renumbered).collect();
        let chain = |at: &usize| (self.chains[*at].0.clone(), rules(&self.chains[*at].1));
        Self {
            hooks: self.hooks.iter().map(rules).collect(),
            chains: kept.iter().map(chain).collect(),
        }
    }

    /// As the kernel has it.
    fn build(&self, sizes: [usize; 3]) -> Table {
        let sizes = Sizes::new(sizes);
        let mut starts = Vec::new();
        let mut at: usize = self.hooks.iter().map(|rules| sizes.of(rules) + sizes.standard()).sum();
        for (_, rules) in &self.chains {
            at += sizes.error();
            starts.push(at);
            at += sizes.of(rules) + sizes.standard();
        }
        let mut table = Table {
            valid_hooks: NAT.iter().map(|hook| 1 << hook).sum(),
            hook_entries: [u32::MAX; HOOKS],
            underflows: [u32::MAX; HOOKS],
            number: 0,
            entries: Vec::new(),
        };
        for (hook, rules) in NAT.into_iter().zip(&self.hooks) {
            table.hook_entries[hook] = table.entries.len() as u32;
            rules.iter().for_each(|rule| sizes.rule(&mut table, rule, &starts));
            table.underflows[hook] = table.entries.len() as u32;
            sizes.verdict(&mut table, ACCEPT);
        }
        for (name, rules) in &self.chains {
            sizes.chain(&mut table, name);
            rules.iter().for_each(|rule| sizes.rule(&mut table, rule, &starts));
            sizes.verdict(&mut table, RETURN);
        }
        sizes.chain(&mut table, "ERROR");
        table
    }
}

/// Writes entries: where they have their target, their length, and their end.
struct Sizes {
    target: usize,
    next: usize,
    size: usize,
}

impl Sizes {
    fn new([target, next, size]: [usize; 3]) -> Self {
        Self { target, next, size }
    }

    fn standard(&self) -> usize {
        self.size + 40
    }

    fn error(&self) -> usize {
        self.size + 64
    }

    fn of(&self, rules: &[Rule]) -> usize {
        rules.iter().map(|rule| self.of_one(rule)).sum()
    }

    fn of_one(&self, rule: &Rule) -> usize {
        let target = match rule.action {
            Action::Extension(data) => 32 + data,
            _ => 40,
        };
        self.size + rule.matches + target
    }

    fn entry(&self, table: &mut Table, rule: &Rule, name: &str, data: &[u8]) {
        let begin = table.entries.len();
        let target = self.size + rule.matches;
        let length = target + 32 + data.len();
        let mut entry = vec![0xa5; length];
        entry[self.target..self.target + 2].copy_from_slice(&(target as u16).to_ne_bytes());
        entry[self.next..self.next + 2].copy_from_slice(&(length as u16).to_ne_bytes());
        entry[self.size - 16..self.size - 8].copy_from_slice(&rule.counters.to_ne_bytes());
        entry[target..target + 32].fill(0);
        entry[target..target + 2].copy_from_slice(&((32 + data.len()) as u16).to_ne_bytes());
        entry[target + 2..target + 2 + name.len()].copy_from_slice(name.as_bytes());
        entry[target + 32..].copy_from_slice(data);
        table.entries.extend(entry);
        table.number += 1;
        assert_eq!(begin % 8, 0);
    }

    fn rule(&self, table: &mut Table, rule: &Rule, starts: &[usize]) {
        let verdict = match rule.action {
            Action::Extension(data) => return self.entry(table, rule, "MARK", &vec![7; data]),
            Action::Jump(to) => starts[to] as i32,
            Action::Verdict(verdict) => verdict,
            Action::Nothing => (table.entries.len() + self.of_one(rule)) as i32,
        };
        let mut data = verdict.to_ne_bytes().to_vec();
        data.resize(8, 0);
        self.entry(table, rule, "", &data);
    }

    fn verdict(&self, table: &mut Table, verdict: i32) {
        let action = Action::Verdict(verdict);
        self.rule(table, &Rule { matches: 0, action, counters: 0 }, &[]);
    }

    fn chain(&self, table: &mut Table, name: &str) {
        let mut data = name.as_bytes().to_vec();
        data.resize(32, 0);
        let action = Action::Nothing;
        self.entry(table, &Rule { matches: 0, action, counters: 0 }, "ERROR", &data);
    }
}

/// A family's layout, once as the code has it and once as these tests write it.
const FAMILIES: [(Layout, [usize; 3]); 2] = [(IPV4, [88, 90, 112]), (IPV6, [140, 142, 168])];

fn rule(chains: usize) -> impl Strategy<Value = Rule> {
    let action = prop_oneof![
        3 => (0..chains.max(1)).prop_map(move |to| match chains {
            0 => Action::Nothing,
            _ => Action::Jump(to),
        }),
        1 => (-5..0i32).prop_map(Action::Verdict),
        1 => Just(Action::Nothing),
        1 => (0..5usize).prop_map(|size| Action::Extension(size * 8)),
    ];
    (0..4usize, action, any::<u64>()).prop_map(|(matches, action, counters)| Rule {
        matches: matches * 8,
        action,
        counters,
    })
}

fn model() -> impl Strategy<Value = Model> {
    (0..6usize).prop_flat_map(|chains| {
        let rules = move || prop::collection::vec(rule(chains), 0..5);
        let name = prop_oneof![
            (0..9u8).prop_map(|number| format!("KUBE-{number}")),
            (0..9u8).prop_map(|number| format!("OWN-{number}")),
        ];
        (prop::collection::vec(rules(), NAT.len()), prop::collection::vec((name, rules()), chains))
            .prop_map(|(hooks, chains)| Model { hooks, chains })
    })
}

proptest! {
    #[test]
    fn what_is_left_is_what_a_person_would_have_left(model in model()) {
        for (layout, sizes) in FAMILIES {
            let table = model.build(sizes);
            let without = table.without(layout, is_unwanted).unwrap();
            let wanted = model.without_unwanted();
            prop_assert_eq!(&without.table, &wanted.build(sizes));
            prop_assert_eq!(without.chains, model.chains.len() - wanted.chains.len());
            prop_assert_eq!(without.kept.len(), without.table.number as usize);
            let again = without.table.without(layout, is_unwanted).unwrap();
            prop_assert_eq!((again.chains, again.jumps), (0, 0));
        }
    }

    #[test]
    fn odd_tables_are_refused_and_nothing_worse(
        model in model(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        hooks in any::<[u32; HOOKS]>(),
        is_cut in any::<bool>(),
        has_odd_hooks in any::<bool>(),
    ) {
        for (layout, sizes) in FAMILIES {
            let mut table = model.build(sizes);
            for (at, byte) in &changes {
                let at = at.index(table.entries.len());
                table.entries[at] = *byte;
            }
            if is_cut {
                table.entries.truncate(cut.index(table.entries.len()));
            }
            if has_odd_hooks {
                table.hook_entries = hooks;
                table.underflows = hooks.map(|hook| hook % 4096);
            }
            let _ = table.has_extension(layout, is_unwanted);
            if let Ok(Without { table: left, .. }) = table.without(layout, is_unwanted) {
                prop_assert!(left.entries.len() <= table.entries.len());
                prop_assert!(left.without(layout, is_unwanted).is_ok());
            }
        }
    }

    #[test]
    fn bytes_that_are_no_table_are_refused(entries in prop::collection::vec(any::<u8>(), 0..600)) {
        let table = Table {
            valid_hooks: 0x1f,
            hook_entries: [0; HOOKS],
            underflows: [0; HOOKS],
            number: 1,
            entries,
        };
        prop_assert!(table.without(IPV4, is_unwanted).is_err());
    }
}

#[test]
fn extensions_are_found_as_matches_and_as_targets() {
    let rule = |action| vec![Rule { matches: 0, action, counters: 0 }];
    for (layout, sizes) in FAMILIES {
        let model = |rules| Model { hooks: vec![vec![], rules, vec![], vec![]], chains: vec![] };
        let marks = model(rule(Action::Extension(8))).build(sizes);
        assert!(marks.has_extension(layout, |name| name == "MARK").unwrap());
        let nothing = model(rule(Action::Nothing)).build(sizes);
        assert!(!nothing.has_extension(layout, |name| name == "MARK").unwrap());
        // The rule's match, instead of the bytes that nobody looked at.
        let mut matches = model(vec![Rule { matches: 40, action: Action::Nothing, counters: 0 }]);
        matches.hooks.swap(0, 1);
        let mut table = matches.build(sizes);
        let name = b"\x28\0conntrack\0";
        table.entries[sizes[2]..sizes[2] + name.len()].copy_from_slice(name);
        assert!(table.has_extension(layout, |name| name == "conntrack").unwrap());
        assert!(!table.has_extension(layout, |name| name == "state").unwrap());
        table.entries[sizes[2]] = 8;
        let error = table.has_extension(layout, |name| name == "state").unwrap_err();
        assert!(error.to_string().starts_with("half a match"));
    }
}

#[test]
fn each_part_that_is_wrong_is_named() {
    let (layout, sizes) = FAMILIES[0];
    let jump = Rule { matches: 0, action: Action::Jump(0), counters: 1 };
    let model = Model {
        hooks: vec![vec![jump], vec![], vec![], vec![]],
        chains: vec![("OWN".into(), vec![])],
    };
    let good = model.build(sizes);
    assert_eq!(good.without(layout, is_unwanted).unwrap().table, good);
    let words = |table: Table| table.without(layout, is_unwanted).unwrap_err().to_string();
    let with = |change: &dyn Fn(&mut Table)| {
        let mut table = good.clone();
        change(&mut table);
        words(table)
    };
    assert!(with(&|table| table.entries.truncate(200)).starts_with("an entry without an end"));
    assert!(with(&|table| table.entries[90] = 0).starts_with("an entry without"));
    assert!(with(&|table| table.entries[88] = 8).starts_with("an entry without a target"));
    assert!(with(&|table| table.entries[112] = 200).starts_with("an entry with half a target"));
    assert!(with(&|table| table.entries[144] += 8).starts_with("a jump to nowhere"));
    assert!(with(&|table| table.number += 1).starts_with("another number of entries"));
    assert!(with(&|table| table.underflows[1] += 8).starts_with("no chain of a hook"));
    assert!(with(&|table| table.hook_entries[4] = 1 << 20).starts_with("no chain of a hook"));
    // The policy itself can't go.
    assert!(with(&|table| table.underflows[0] = table.number).starts_with("no chain of a hook"));
}
