//! What a kernel says again and again with other operands: each such group of statements becomes one small function.
//!
//! Reads a kernel and its facts; makes, for each group, the function as a kernel of its own, and for each place the operands
//! it is called with. A group is what one statement alone needs: its *cone*. Always holds: a group's statements move down
//! to the last of them, so what they read is the same there: no load passes a store to its memory or a barrier, and no
//! statement but the last reads a variable that a loop changes.

mod cone;
mod copy;

use super::facts::Fact;
use crate::ir::{Access, Address, Block, Inst, Kernel, Memory, Param, ParamKind, Scalar, Statement, Type, Value};
use cone::{Cone, Finder};
use copy::{Copy, each_leaf, each_step};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A statement of the kernel, by its place in memory: the kernel is borrowed for as long as this is used.
pub(super) type Key = *const Statement;

/// Fewest and most statements of a group.
const SIZES: std::ops::RangeInclusive<usize> = 3..=64;
/// Most parameters of a function: more read worse than what they replace.
const PARAMETERS: usize = 8;
/// Most numbers that are passed; where more differ, each set of numbers gets a function of its own,
const NUMBERS: usize = 2;
/// if that many calls share it.
const SHARED: usize = 4;
/// Fewest lines that a function must save.
const SAVES: usize = 4;

/// A call in the place of a group's last statement.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// Which function.
    pub function: usize,
    /// Where its pointers point.
    pub places: Vec<Address>,
    /// Its other operands.
    pub values: Vec<Passed>,
}

/// An operand of a call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Passed {
    /// A value of the kernel.
    Value(Value),
    /// How far behind its pointer an access is.
    Step(i64),
}

/// A group as a kernel of its own.
#[derive(Clone, Debug)]
pub(super) struct Function {
    /// Its parameters are the pointers, its body the group.
    pub kernel: Kernel,
    /// The values of `kernel` that are its other parameters.
    pub values: Vec<Value>,
    /// What the first call passes for them.
    pub origins: Vec<Passed>,
    /// What it gives back, in `kernel`.
    pub result: Option<Value>,
    /// Whether it reads memory: such a call stays where it is.
    pub loads: bool,
    /// How often it is called.
    pub calls: usize,
}

/// All groups of a kernel.
#[derive(Debug, Default)]
pub(super) struct Outlines {
    /// The functions, each used before those after it.
    pub functions: Vec<Function>,
    /// The calls, by the statement that they stand for.
    pub calls: HashMap<Key, Call>,
    /// Statements that a call has taken in.
    pub taken: HashSet<Key>,
}

/// Finds the groups of a kernel. `webs` says which values a loop's variable takes.
pub(super) fn outlines(kernel: &Kernel, facts: &[Fact<'_>], webs: &[Option<Value>]) -> Outlines {
    let finder = Finder { kernel, facts, webs };
    let mut cones = Vec::new();
    finder.block(&kernel.body, &mut cones);
    let mut groups: BTreeMap<String, Vec<Cone<'_>>> = BTreeMap::new();
    for cone in cones {
        groups.entry(finder.signature(&cone)).or_default().push(cone);
    }
    let groups = groups.into_values().filter(|cones| cones.len() > 1);
    let mut groups: Vec<Vec<Cone<'_>>> = groups.flat_map(|cones| finder.by_numbers(cones)).collect();
    // The largest saving first; where two save alike, the larger group, then in the order of the kernel.
    groups.sort_by_key(|cones| {
        (std::cmp::Reverse(saving(cones)), std::cmp::Reverse(cones[0].members.len()), cones[0].number)
    });
    let mut found = Outlines::default();
    let mut claimed: HashSet<Key> = HashSet::new();
    for mut cones in groups {
        let mut own: HashSet<Key> = HashSet::new();
        cones.retain(|cone| {
            let free = cone.members.iter().all(|&(member, _)| {
                let key = std::ptr::from_ref(member);
                !claimed.contains(&key) && !own.contains(&key)
            });
            if free {
                own.extend(cone.members.iter().map(|&(member, _)| std::ptr::from_ref(member)));
            }
            free
        });
        if cones.len() < 2 || saving(&cones) < SAVES {
            continue;
        }
        if finder.function(&cones, &mut found) {
            claimed.extend(own);
        }
    }
    found
}

/// About how many lines a function saves.
fn saving(cones: &[Cone<'_>]) -> usize {
    let lines = cones[0].lines();
    (cones.len() * lines.saturating_sub(1)).saturating_sub(lines + 2)
}

impl<'k> Finder<'k, '_> {
    /// What cones of one group have in common, as text.
    fn signature(&self, cone: &Cone<'_>) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        let mut copy = Copy::new(&cone.members);
        let mut leaves = Vec::new();
        for &(member, _) in &cone.members {
            let statement = copy.statement(member, &mut |leaf| leaves.push(self.kernel.ty(leaf)));
            self.sign(&statement, &copy, &mut text);
        }
        for ty in leaves {
            let _ = write!(text, "{ty},");
        }
        for place in &cone.places {
            let _ = write!(text, "{:?};", place.memory);
        }
        text
    }

    fn sign(&self, statement: &Statement, copy: &Copy, text: &mut String) {
        use std::fmt::Write;
        for result in &statement.results {
            let _ = write!(text, "{}=", self.kernel.ty(copy.origins[result.0 as usize]));
        }
        match &statement.inst {
            // The lane map is long.
            Inst::Mma { shape, a, b, acc } => {
                let _ = write!(text, "{shape}({a},{b},{acc})");
            }
            Inst::If(inner) => {
                let _ = write!(text, "if {}{{", inner.cond);
                inner.then.statements.iter().for_each(|inner| self.sign(inner, copy, text));
                text.push_str("}{");
                inner.otherwise.statements.iter().for_each(|inner| self.sign(inner, copy, text));
                text.push('}');
            }
            inst => {
                let _ = write!(text, "{inst:?}");
            }
        }
        text.push('\n');
    }

    /// A group as it is, or parted by the numbers that it reads where many of them differ.
    fn by_numbers<'c>(&self, cones: Vec<Cone<'c>>) -> Vec<Vec<Cone<'c>>> {
        let number = |value: Value| match self.fact(value).inst {
            Some(Inst::Const(constant)) => Some(format!("{constant:?}")),
            _ => None,
        };
        let numbers = |cone: &Cone<'c>| cone.leaves.iter().map(|&leaf| number(leaf)).collect::<Vec<_>>();
        let all: Vec<Vec<Option<String>>> = cones.iter().map(numbers).collect();
        let columns: BTreeSet<Vec<&Option<String>>> = (0..all[0].len())
            .map(|place| all.iter().map(|row| &row[place]).collect::<Vec<_>>())
            .filter(|column| column.iter().all(|one| one.is_some()) && column.iter().any(|one| *one != column[0]))
            .collect();
        if columns.len() <= NUMBERS {
            return vec![cones];
        }
        let mut parts: BTreeMap<Vec<Option<String>>, Vec<usize>> = BTreeMap::new();
        for (at, row) in all.into_iter().enumerate() {
            parts.entry(row).or_default().push(at);
        }
        if parts.values().any(|part| part.len() < SHARED) {
            return vec![cones];
        }
        let mut cones: Vec<Option<Cone<'c>>> = cones.into_iter().map(Some).collect();
        parts.into_values().map(|part| part.into_iter().filter_map(|at| cones[at].take()).collect()).collect()
    }

    /// Adds the function of a group and its calls; `false` if it would have too many parameters.
    fn function(&self, cones: &[Cone<'k>], found: &mut Outlines) -> bool {
        // Operands that agree wherever the function is called are one parameter; numbers that never change stay inside.
        let mut columns: Vec<Vec<Value>> = Vec::new();
        let mut column_of = Vec::new();
        for place in 0..cones[0].leaves.len() {
            let column: Vec<Value> = cones.iter().map(|cone| cone.leaves[place]).collect();
            let known = columns.iter().position(|other| *other == column);
            column_of.push(known.unwrap_or_else(|| {
                columns.push(column);
                columns.len() - 1
            }));
        }
        let fixed = |column: &[Value]| {
            let first = self.fact(column[0]).inst;
            matches!(first, Some(Inst::Const(_))) && column.iter().all(|&value| self.fact(value).inst == first)
        };
        let passed: Vec<usize> = (0..columns.len()).filter(|&column| !fixed(&columns[column])).collect();
        // The same for distances from pointers.
        let mut steps: Vec<Vec<i64>> = Vec::new();
        let step_of: Vec<Result<i64, usize>> = (0..cones[0].steps.len())
            .map(|place| {
                let column: Vec<i64> = cones.iter().map(|cone| cone.steps[place]).collect();
                if column.iter().all(|&step| step == column[0]) {
                    return Ok(column[0]);
                }
                Err(steps.iter().position(|other| *other == column).unwrap_or_else(|| {
                    steps.push(column);
                    steps.len() - 1
                }))
            })
            .collect();
        if passed.len() + steps.len() + cones[0].places.len() > PARAMETERS {
            return false;
        }
        let mut copy = Copy::new(&cones[0].members);
        let mut types = Vec::new();
        let mut statements = Vec::new();
        let mut names = Vec::new();
        for (number, column) in columns.iter().enumerate() {
            let value = copy.define(None);
            types.push(self.kernel.ty(column[0]));
            names.push(value);
            if let (false, Some(inst)) = (passed.contains(&number), self.fact(column[0]).inst) {
                statements.push(Statement { results: vec![value], inst: inst.clone() });
            }
        }
        let step_names: Vec<Value> = steps.iter().map(|_| copy.define(None)).collect();
        types.extend(steps.iter().map(|_| Type::scalar(Scalar::I32)));
        let (mut place, mut access) = (0, 0);
        for &(member, _) in &cones[0].members {
            let mut statement = copy.statement(member, &mut |_| {});
            each_step(&mut statement, &mut |address| {
                match step_of[access] {
                    Ok(step) => address.offset = step,
                    Err(which) => address.index = Some(step_names[which]),
                }
                access += 1;
            });
            // Operands from outside come in the order in which they were noted.
            each_leaf(&mut statement, &mut |leaf| {
                *leaf = names[column_of[place]];
                place += 1;
            });
            statements.push(statement);
        }
        types.extend(copy.origins[types.len()..].iter().map(|&value| self.kernel.ty(value)));
        let result = statements.last().and_then(|last| last.results.first().copied());
        let params = cones[0].places.iter().map(|place| self.param(place.memory)).collect();
        let body = Block { statements };
        let mut loads = false;
        body.each(&mut |statement| loads |= matches!(statement.inst, Inst::Load { .. }));
        let kernel =
            Kernel { name: String::new(), params, shared: Vec::new(), workgroup: self.kernel.workgroup, types, body };
        let number = found.functions.len();
        for (which, cone) in cones.iter().enumerate() {
            let values = passed.iter().map(|&column| Passed::Value(columns[column][which]));
            let values = values.chain(steps.iter().map(|column| Passed::Step(column[which]))).collect();
            let call = Call { function: number, places: cone.places.clone(), values };
            let (last, others) = cone.members.split_last().expect("a cone has its last statement");
            found.calls.insert(std::ptr::from_ref(last.0), call);
            found.taken.extend(others.iter().map(|&(member, _)| std::ptr::from_ref(member)));
        }
        found.functions.push(Function {
            kernel,
            values: passed.iter().map(|&column| names[column]).chain(step_names).collect(),
            origins: passed
                .iter()
                .map(|&column| Passed::Value(columns[column][0]))
                .chain(steps.iter().map(|column| Passed::Step(column[0])))
                .collect(),
            result,
            loads,
            calls: cones.len(),
        });
        true
    }

    /// A memory as a function's parameter.
    fn param(&self, memory: Memory) -> Param {
        match memory {
            Memory::Param(number) => self.kernel.params[number as usize].clone(),
            Memory::Shared(number) => {
                let shared = &self.kernel.shared[number as usize];
                let kind = ParamKind::Buffer { access: Access::ReadWrite, align: shared.align };
                Param { name: shared.name.clone(), kind }
            }
        }
    }
}
