//! What may be done to a store, and to its disk, at random.

use proptest::prelude::*;
use sluice_tests::store_disk::Fault;

#[derive(Debug, Clone)]
pub(super) enum Op {
    Append { items: Vec<Item>, atomic: bool, revision: i8 },
    Lease { group: u8, max: usize },
    Settle { pick: u16, how: How },
    Pass { seconds: u64 },
    Retain,
    Seek { group: u8, to: To },
    Snapshot { group: u8, name: u8, how: Snap },
    Purge { group: u8 },
    Erase { pick: u16 },
    Discard { pick: u16 },
    Replay { pick: u16 },
    PutGroup { group: u8, to: To },
    DeleteGroup { group: u8 },
    Crash,
    Restart,
    Behind,
    Trouble(Trouble),
}

/// What is done with a named snapshot.
#[derive(Debug, Clone, Copy)]
pub(super) enum Snap {
    Put,
    Restore,
    Delete,
}

/// What the disk does wrong from now on.
#[derive(Debug, Clone)]
pub(super) enum Trouble {
    /// The next operation of the kind but so many fails.
    Break(Fault, u32),
    /// The same, during the next opening.
    BreakOpening(Fault, u32),
    /// No file grows.
    Fill,
    /// There is room, and nothing fails.
    Heal,
    /// Before the next opening, what would a store make of one flipped bit?
    Flip(u64),
}

#[derive(Debug, Clone, Default)]
pub(super) struct Item {
    pub(super) partition: u16,
    pub(super) priority: u8,
    pub(super) key: Option<u8>,
    pub(super) dedup: Option<(u8, bool)>,
    pub(super) due: Option<u64>,
    pub(super) expires: Option<u64>,
    pub(super) target: Option<u8>,
    pub(super) fate: u8,
    pub(super) size: usize,
}

#[derive(Debug, Clone)]
pub(super) enum How {
    Ack,
    Retry(u64),
    DeadLetter,
    Release,
    Extend(u64),
}

#[derive(Debug, Clone)]
pub(super) enum To {
    Earliest,
    Latest,
    Time(u64),
    Offset(u16, u8, u64),
}

fn item() -> impl Strategy<Value = Item> {
    (
        0..2_u16,
        prop_oneof![3 => Just(0), 1 => Just(4), 1 => Just(9)],
        prop::option::weighted(0.6, 0..3_u8),
        prop::option::weighted(0.3, (0..6_u8, prop::bool::weighted(0.8))),
        prop::option::weighted(0.15, 0..90_u64),
        prop::option::weighted(0.15, 0..120_u64),
        prop::option::weighted(0.1, 0..3_u8),
        prop_oneof![12 => Just(0_u8), 1 => Just(1), 1 => Just(2)],
        prop_oneof![8 => 0..64_usize, 1 => 0..6000_usize],
    )
        .prop_map(|(partition, priority, key, dedup, due, expires, target, fate, size)| Item {
            partition,
            priority,
            key,
            dedup,
            due,
            expires,
            target,
            fate,
            size,
        })
}

fn snap() -> impl Strategy<Value = Snap> {
    prop_oneof![3 => Just(Snap::Put), 3 => Just(Snap::Restore), 1 => Just(Snap::Delete)]
}

fn to() -> impl Strategy<Value = To> {
    prop_oneof![
        Just(To::Earliest),
        Just(To::Latest),
        (0..600_u64).prop_map(To::Time),
        (0..2_u16, prop_oneof![Just(0_u8), Just(4), Just(9)], 0..20_u64)
            .prop_map(|(p, lane, at)| To::Offset(p, lane, at)),
    ]
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let how = prop_oneof![
        6 => Just(How::Ack),
        3 => (0..60_u64).prop_map(How::Retry),
        1 => Just(How::DeadLetter),
        1 => Just(How::Release),
        1 => (0..90_u64).prop_map(How::Extend),
    ];
    prop_oneof![
        12 => (prop::collection::vec(item(), 1..6), prop::bool::weighted(0.15), prop_oneof![8 => Just(0_i8), 1 => Just(-1), 1 => Just(1)])
            .prop_map(|(items, atomic, revision)| Op::Append { items, atomic, revision }),
        12 => (0..3_u8, 1..12_usize).prop_map(|(group, max)| Op::Lease { group, max }),
        16 => (any::<u16>(), how).prop_map(|(pick, how)| Op::Settle { pick, how }),
        6 => prop_oneof![4 => 1..20_u64, 2 => 20..60_u64, 1 => 60..400_u64].prop_map(|seconds| Op::Pass { seconds }),
        2 => Just(Op::Retain),
        1 => (0..3_u8, to()).prop_map(|(group, to)| Op::Seek { group, to }),
        2 => (0..3_u8, 0..2_u8, snap()).prop_map(|(group, name, how)| Op::Snapshot { group, name, how }),
        1 => (0..3_u8).prop_map(|group| Op::Purge { group }),
        1 => any::<u16>().prop_map(|pick| Op::Erase { pick }),
        1 => any::<u16>().prop_map(|pick| Op::Discard { pick }),
        1 => any::<u16>().prop_map(|pick| Op::Replay { pick }),
        1 => (0..3_u8, to()).prop_map(|(group, to)| Op::PutGroup { group, to }),
        1 => (0..3_u8).prop_map(|group| Op::DeleteGroup { group }),
        3 => Just(Op::Crash),
        1 => Just(Op::Restart),
        3 => Just(Op::Behind),
    ]
}

/// The same on a disk that gives trouble.
pub(super) fn op_or_trouble() -> impl Strategy<Value = Op> {
    prop_oneof![8 => op().boxed(), 1 => trouble().prop_map(Op::Trouble).boxed()]
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let fault = prop_oneof![
        3 => Just(Fault::Write),
        3 => Just(Fault::Sync),
        1 => Just(Fault::Name),
        1 => Just(Fault::SyncDir),
    ];
    // Not while it runs: what the disk refuses to give back stops its partition until the next opening.
    let opening = prop_oneof![4 => fault.clone(), 1 => Just(Fault::Read)];
    prop_oneof![
        8 => (fault, 0..6_u32).prop_map(|(fault, after)| Trouble::Break(fault, after)),
        2 => (opening, 0..12_u32).prop_map(|(fault, after)| Trouble::BreakOpening(fault, after)),
        2 => Just(Trouble::Fill),
        4 => Just(Trouble::Heal),
        3 => any::<u64>().prop_map(Trouble::Flip),
    ]
}
