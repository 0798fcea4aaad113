//! The decoded form: one entry per instruction, with registers as numbers and jumps as positions.

use crate::alu::compare::Compare;
use crate::alu::{Fn1, Fn2, Fn3, Fn4, Options};
use crate::ast::Space;
use crate::asynchronous::Bulk;
use crate::matrix::{MatrixMove, Mma};
use crate::order::Orders;
use crate::wgmma::Wgmma;

/// A register slot of a warp.
pub(crate) type Reg = u32;
/// A predicate of a warp.
pub(crate) type Pred = u32;

/// A predicate as an operand, and whether it is negated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Test {
    pub pred: Pred,
    pub negated: bool,
}

/// A memory operand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub space: Space,
    pub base: Reg,
    pub offset: i64,
}

/// What a comparison's result is combined with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Combine {
    pub how: Logic,
    pub with: Test,
}

/// A bit function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

impl Logic {
    pub(crate) fn apply(self, a: u32, b: u32) -> u32 {
        match self {
            Logic::And => a & b,
            Logic::Or => a | b,
            Logic::Xor => a ^ b,
        }
    }
}

/// A load or store.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub place: Place,
    /// Bytes of one element.
    pub bytes: u32,
    /// Sign-extend what is loaded.
    pub signed: bool,
    /// Registers, one per element; none for `_`.
    pub values: Vec<Option<Reg>>,
    /// `volatile`, `relaxed`, `acquire`, `release`: an access that may synchronise.
    pub strong: bool,
    /// With other blocks.
    pub orders: Orders,
}

/// How an atomic combines old and new.
pub(crate) type Combiner = fn(u64, u64, u64) -> u64;

/// `atom` and `red`.
#[derive(Clone)]
pub(crate) struct Atomic {
    pub place: Place,
    pub bytes: u32,
    pub function: Combiner,
    /// Old values go here; none for `red`.
    pub out: Vec<Option<Reg>>,
    /// Operands, one per element.
    pub values: Vec<Reg>,
    /// New value of `cas`.
    pub swap: Option<Reg>,
    /// What it orders between blocks.
    pub orders: Orders,
}

/// Where a shuffle reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What a vote asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// A reduction over a warp.
pub(crate) type Redux = fn(u32, u32) -> u32;

/// What a block barrier does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bar {
    Sync,
    Arrive,
    /// `red.popc` into a register.
    Count,
    All,
    Any,
}

/// `bar` and `barrier`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Barrier {
    pub how: Bar,
    pub aligned: bool,
    pub id: Reg,
    pub threads: Option<Reg>,
    pub out: Option<Reg>,
    pub out_pred: Option<Pred>,
    pub test: Option<Test>,
}

/// Operations on transaction barriers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mbarrier {
    Init {
        count: Reg,
    },
    Invalidate,
    /// Arrives `count` times after expecting `bytes` more.
    Arrive {
        state: Option<Reg>,
        count: Option<Reg>,
        bytes: Option<Reg>,
        drop: bool,
    },
    Expect {
        bytes: Reg,
    },
    Complete {
        bytes: Reg,
    },
    /// `try_wait` and `test_wait`: by state or by parity.
    Wait {
        out: Pred,
        state: Reg,
        parity: bool,
    },
    Pending {
        out: Reg,
        state: Reg,
    },
    /// `cp.async.mbarrier.arrive`.
    CopyArrive {
        raise: bool,
    },
}

/// `cp.async`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy16 {
    pub to: Place,
    pub from: Place,
    pub bytes: u32,
    pub source_bytes: Option<Reg>,
    pub ignore: Option<Test>,
}

/// What an instruction does.
pub(crate) enum Op {
    One(Fn1, Options, Reg, Reg),
    Two(Fn2, Options, Reg, Reg, Reg),
    Three(Fn3, Options, Reg, [Reg; 3]),
    Four(Fn4, Options, Reg, [Reg; 4]),
    Move(Reg, Reg),
    /// Add with carry in and out: subtract, carry in, carry out, 64 bits.
    Carry {
        subtract: bool,
        take: bool,
        give: bool,
        wide: bool,
        out: Reg,
        a: Reg,
        b: Reg,
    },
    /// `mad.lo.cc`, `madc.hi`, …: product part and a carry.
    MulCarry {
        high: bool,
        signed: bool,
        take: bool,
        give: bool,
        wide: bool,
        out: Reg,
        args: [Reg; 3],
    },
    PredMove(Pred, Test),
    PredConst(Pred, bool),
    PredLogic(Logic, Pred, Test, Test),
    Compare {
        compare: Compare,
        packed: bool,
        out: Pred,
        other: Option<Pred>,
        a: Reg,
        b: Reg,
        combine: Option<Combine>,
    },
    /// `set`: `yes` where true; packed results have two halves.
    Set {
        compare: Compare,
        packed: bool,
        yes: u64,
        out: Reg,
        a: Reg,
        b: Reg,
        combine: Option<Combine>,
    },
    Select {
        out: Reg,
        a: Reg,
        b: Reg,
        test: Test,
    },
    SelectSign {
        float: bool,
        out: Reg,
        a: Reg,
        b: Reg,
        c: Reg,
    },
    Pack {
        out: Reg,
        parts: Box<[Reg]>,
        width: u32,
    },
    Unpack {
        parts: Box<[Option<Reg>]>,
        from: Reg,
        width: u32,
    },
    Clock(Reg),
    /// `isspacep`.
    IsSpace(Pred, Reg, Space),
    /// `mapa` and `getctarank`: generic addresses where `generic`.
    Mapa {
        out: Reg,
        address: Reg,
        rank: Reg,
        generic: bool,
    },
    Rank {
        out: Reg,
        address: Reg,
        generic: bool,
    },
    Load(Box<Access>),
    Store(Box<Access>),
    Atomic(Box<Atomic>),
    Jump(u32),
    JumpTable {
        index: Reg,
        targets: Box<[u32]>,
    },
    Exit,
    Trap,
    /// Hints, and fences that order what this machine already orders.
    Nothing,
    /// A fence between blocks.
    DeviceFence,
    ProxyFence,
    Shuffle {
        how: Shuffle,
        out: Reg,
        valid: Option<Pred>,
        value: Reg,
        lane: Reg,
        clamp: Reg,
        members: Option<Reg>,
    },
    Vote {
        how: Vote,
        out: Reg,
        out_pred: Pred,
        test: Test,
        members: Option<Reg>,
    },
    Match {
        all: bool,
        wide: bool,
        out: Reg,
        pred: Option<Pred>,
        value: Reg,
        members: Reg,
    },
    ActiveMask(Reg),
    Redux {
        function: Redux,
        out: Reg,
        value: Reg,
        members: Reg,
    },
    Elect {
        out: Reg,
        pred: Pred,
        members: Reg,
    },
    WarpBarrier(Reg),
    Barrier(Box<Barrier>),
    ClusterArrive,
    ClusterWait,
    Mbarrier(Box<(Place, Mbarrier)>),
    Copy(Box<Copy16>),
    CopyCommit,
    CopyWait(u32),
    Bulk(Box<Bulk>),
    BulkCommit,
    BulkWait(u32),
    MatrixMove(Box<MatrixMove>),
    Mma(Box<Mma>),
    Wgmma(Box<Wgmma>),
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait(u32),
}

/// An instruction with its guard and where it stands in the text.
pub(crate) struct Inst {
    pub op: Op,
    pub guard: Option<Test>,
    /// Index into the program's source lines.
    pub source: u32,
}
