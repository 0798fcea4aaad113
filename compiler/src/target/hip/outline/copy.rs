//! Statements of a cone, copied with values numbered anew.

use crate::ir::{Address, Inst, Memory, Statement, Value};
use std::collections::{HashMap, HashSet};

/// What stands for a value from outside until it gets its name.
pub(super) const LEAF: Value = Value(u32::MAX);

/// Visits what [`Copy`] has marked as coming from outside.
pub(super) fn each_leaf(statement: &mut Statement, visit: &mut dyn FnMut(&mut Value)) {
    statement.inst.each_operand(|value| {
        if *value == LEAF {
            visit(value);
        }
    });
    if let Inst::If(inner) = &mut statement.inst {
        for block in [&mut inner.then, &mut inner.otherwise] {
            block.statements.iter_mut().for_each(|statement| each_leaf(statement, visit));
        }
    }
}

/// Visits addresses whose distance from their pointer [`Copy`] has noted, in its order.
pub(super) fn each_step(statement: &mut Statement, visit: &mut dyn FnMut(&mut Address)) {
    match &mut statement.inst {
        Inst::Load { address, .. } | Inst::Store { address, .. } if address.index.is_none() => visit(address),
        Inst::If(inner) => {
            for block in [&mut inner.then, &mut inner.otherwise] {
                block.statements.iter_mut().for_each(|statement| each_step(statement, visit));
            }
        }
        _ => {}
    }
}

/// Copies a cone's statements with values numbered anew, memories as parameters and [`LEAF`] for what comes from outside.
pub(super) struct Copy {
    names: HashMap<Value, Value>,
    /// The value that each new one stands for.
    pub origins: Vec<Value>,
    pub places: Vec<Address>,
    /// How far behind its pointer each access without an index of its own is; the copies say 0.
    pub steps: Vec<i64>,
    defined: HashSet<Value>,
}

impl Copy {
    pub fn new(members: &[(&Statement, bool)]) -> Copy {
        let mut defined = HashSet::new();
        for &(member, _) in members {
            member.each(&mut |statement| defined.extend(statement.results.iter().copied()));
        }
        Copy { names: HashMap::new(), origins: Vec::new(), places: Vec::new(), steps: Vec::new(), defined }
    }

    /// A new value.
    pub fn define(&mut self, origin: Option<Value>) -> Value {
        let value = Value(self.origins.len() as u32);
        self.origins.push(origin.unwrap_or(LEAF));
        if let Some(origin) = origin {
            self.names.insert(origin, value);
        }
        value
    }

    pub fn statement(&mut self, statement: &Statement, leaf: &mut dyn FnMut(Value)) -> Statement {
        let mut inst = match &statement.inst {
            // The bodies come below.
            Inst::If(inner) => {
                let cond = self.operand(inner.cond, leaf);
                let mut inner = inner.clone();
                inner.cond = cond;
                for block in [&mut inner.then, &mut inner.otherwise] {
                    for statement in &mut block.statements {
                        *statement = self.statement(statement, leaf);
                    }
                }
                return Statement { results: Vec::new(), inst: Inst::If(inner) };
            }
            other => other.clone(),
        };
        if let Inst::Load { address, .. } | Inst::Store { address, .. } = &mut inst {
            // What the group itself computes stays an index; the rest of the address is a pointer.
            let own = address.index.filter(|index| self.defined.contains(index));
            let place = if own.is_some() { Address { index: None, offset: 0, ..*address } } else { *address };
            let known = |other: &Address| (other.memory, other.index) == (place.memory, place.index);
            let number = self.places.iter().position(known).unwrap_or_else(|| {
                self.places.push(place);
                self.places.len() - 1
            });
            let mut offset = address.offset - self.places[number].offset;
            if own.is_none() {
                self.steps.push(offset);
                offset = 0;
            }
            *address = Address { memory: Memory::Param(number as u16), index: own, offset };
        }
        inst.each_operand(|value| *value = self.operand(*value, leaf));
        let results = statement.results.iter().map(|&result| self.define(Some(result))).collect();
        Statement { results, inst }
    }

    fn operand(&self, value: Value, leaf: &mut dyn FnMut(Value)) -> Value {
        if self.defined.contains(&value) {
            return self.names[&value];
        }
        leaf(value);
        LEAF
    }
}
