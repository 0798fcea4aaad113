//! Operands: symbols, registers, predicates, places in memory.

use super::special::Special;
use super::{Builder, Result, Symbol};
use crate::ast::{Operand, Space, Type};
use crate::op::{Op, Place, Pred, Reg, Test};

impl<'t> Builder<'t> {
    pub(super) fn find_label(&self, name: &str) -> Result<u32> {
        let found = self.scopes.iter().rev().find_map(|s| s.labels.get(name));
        found.copied().ok_or_else(|| format!("no label `{name}` here"))
    }

    pub(super) fn symbol(&mut self, name: &str) -> Result<Symbol> {
        if let Some(found) = self.scopes.iter().rev().find_map(|s| s.names.get(name)) {
            return Ok(found.clone());
        }
        if let Some(special) = Special::parse(name) {
            let reg = match self.specials.get(&special) {
                Some(reg) => *reg,
                None => {
                    let reg = self.new_reg();
                    self.specials.insert(special, reg);
                    reg
                }
            };
            return Ok(Symbol::Register(reg));
        }
        if let Some(address) = self.globals.get(name) {
            return Ok(Symbol::Memory { space: Space::Global, address: *address });
        }
        let Some(v) = self.text.variables.iter().find(|v| v.name == name) else {
            return Err(format!("`{name}` is not declared"));
        };
        if v.space != Space::Shared {
            return Err(format!("`{name}` lies in a space that modules cannot hold here"));
        }
        if v.external || v.size == 0 {
            return Ok(Symbol::Dynamic);
        }
        if let Some(address) = self.shared_names.get(name) {
            return Ok(Symbol::Memory { space: Space::Shared, address: *address });
        }
        let address = self.shared.next_multiple_of(v.align.max(1));
        self.shared = address + v.size;
        self.shared_names.insert(name.to_string(), address);
        Ok(Symbol::Memory { space: Space::Shared, address })
    }

    pub(super) fn constant(&mut self, value: u64) -> Reg {
        if let Some(reg) = self.constants.get(&value) {
            return *reg;
        }
        let reg = self.new_reg();
        self.constants.insert(value, reg);
        reg
    }

    fn dynamic(&mut self, offset: i64) -> Reg {
        let reg = self.new_reg();
        self.dynamic.push((reg, offset));
        reg
    }

    /// A value operand.
    pub(super) fn source(&mut self, operand: &Operand, ty: Type) -> Result<Reg> {
        let float = matches!(ty.kind, crate::ast::Kind::Float);
        match operand {
            Operand::Integer(n) => Ok(self.constant(*n)),
            Operand::Single(bits) if float && ty.bits == 64 => {
                Ok(self.constant(f64::from(f32::from_bits(*bits)).to_bits()))
            }
            Operand::Single(bits) => Ok(self.constant(u64::from(*bits))),
            Operand::Double(bits) if float && ty.bits == 32 => {
                Ok(self.constant(u64::from((f64::from_bits(*bits) as f32).to_bits())))
            }
            Operand::Double(bits) => Ok(self.constant(*bits)),
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Register(reg) => Ok(reg),
                Symbol::Memory { address, .. } => Ok(self.constant(address)),
                Symbol::Dynamic => Ok(self.dynamic(0)),
                _ => Err(format!("`{name}` is no value")),
            },
            Operand::Sum(name, offset) => match self.symbol(name)? {
                Symbol::Memory { address, .. } => Ok(self.constant(address.wrapping_add_signed(*offset))),
                Symbol::Dynamic => Ok(self.dynamic(*offset)),
                _ => Err(format!("`{name}` plus a number is no value")),
            },
            other => Err(format!("{other:?} is no value")),
        }
    }

    /// A register that is written; `_` gets one that nobody reads.
    pub(super) fn dest(&mut self, operand: &Operand) -> Result<Reg> {
        match operand {
            Operand::Name(name) if name == "_" => Ok(self.new_reg()),
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Register(reg) if !self.specials.values().any(|r| *r == reg) => Ok(reg),
                _ => Err(format!("`{name}` is no register that can be written")),
            },
            other => Err(format!("{other:?} is no register")),
        }
    }

    pub(super) fn pred_dest(&mut self, operand: &Operand) -> Result<Pred> {
        match operand {
            Operand::Name(name) if name == "_" => Ok(self.new_pred()),
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Predicate(p) => Ok(p),
                _ => Err(format!("`{name}` is no predicate")),
            },
            other => Err(format!("{other:?} is no predicate")),
        }
    }

    pub(super) fn is_pred(&mut self, operand: &Operand) -> bool {
        match operand {
            Operand::Name(name) => matches!(self.symbol(name), Ok(Symbol::Predicate(_))),
            Operand::Not(_) => true,
            _ => false,
        }
    }

    pub(super) fn test(&mut self, operand: &Operand) -> Result<Test> {
        match operand {
            Operand::Not(inner) => {
                let test = self.test(inner)?;
                Ok(Test { negated: !test.negated, ..test })
            }
            Operand::Integer(n) => {
                let pred = self.new_pred();
                self.push(Op::PredConst(pred, *n != 0));
                Ok(Test { pred, negated: false })
            }
            other => Ok(Test { pred: self.pred_dest(other)?, negated: false }),
        }
    }

    /// A memory operand of a given space; names decide it where the instruction does not.
    pub(super) fn place(&mut self, operand: &Operand, space: Space) -> Result<Place> {
        let Operand::Address { base, offset, .. } = operand else {
            return Err(format!("{operand:?} is no address"));
        };
        let Some(name) = base else {
            let base = self.constant(*offset as u64);
            return Ok(Place { space, base, offset: 0 });
        };
        match self.symbol(name)? {
            Symbol::Register(base) => Ok(Place { space, base, offset: *offset }),
            Symbol::Memory { space: own, address } => {
                // Parameters of device functions lie in local memory here.
                let space = if space == Space::Generic || space == Space::Param { own } else { space };
                let base = self.constant(address);
                Ok(Place { space, base, offset: *offset })
            }
            Symbol::Dynamic => Ok(Place { space: Space::Shared, base: self.dynamic(0), offset: *offset }),
            _ => Err(format!("`{name}` is no address")),
        }
    }

    /// The parts of a vector operand; a scalar is a vector of one.
    pub(super) fn parts(&mut self, operand: &Operand) -> Result<Vec<Operand>> {
        Ok(match operand {
            Operand::Vector(parts) => parts.clone(),
            Operand::Name(name) => match self.symbol(name) {
                Ok(Symbol::Vector(parts)) => parts.into_iter().map(Operand::Name).collect(),
                _ => vec![operand.clone()],
            },
            other => vec![other.clone()],
        })
    }

    pub(super) fn sources(&mut self, operand: &Operand, ty: Type) -> Result<Vec<Reg>> {
        self.parts(operand)?.iter().map(|p| self.source(p, ty)).collect()
    }

    pub(super) fn dests(&mut self, operand: &Operand) -> Result<Vec<Option<Reg>>> {
        let parts = self.parts(operand)?;
        parts.iter().map(|p| if *p == Operand::Name("_".into()) { Ok(None) } else { self.dest(p).map(Some) }).collect()
    }
}
