//! Jumps, calls and ends. A call is the function's body in place.

use super::{Builder, Result, Symbol, want};
use crate::alu::Modifiers;
use crate::ast::{Operand, Statement, Variable};
use crate::op::Op;
use std::collections::HashMap;

impl Builder<'_> {
    pub(super) fn control(&mut self, s: &Statement, m: &mut Modifiers) -> Result<bool> {
        match s.name.as_str() {
            "bra" => {
                want(s, 1..=1)?;
                m.take("uni");
                let Operand::Name(name) = &s.operands[0] else { return Err("`bra` wants a label".into()) };
                let label = self.find_label(name)?;
                self.push(Op::Jump(label));
            }
            "brx" => {
                want(s, 2..=2)?;
                m.take("idx");
                m.take("uni");
                let index = self.source(&s.operands[0], crate::ast::Type::parse("u32").ok_or("")?)?;
                let Operand::Name(name) = &s.operands[1] else { return Err("`brx.idx` wants a table".into()) };
                let Symbol::Targets(names) = self.symbol(name)? else {
                    return Err(format!("`{name}` is no table of targets"));
                };
                let targets = names.iter().map(|n| self.find_label(n)).collect::<Result<Vec<_>>>()?;
                self.push(Op::JumpTable { index, targets: targets.into() });
            }
            "exit" => self.push(Op::Exit),
            "ret" => {
                m.take("uni");
                let op = self.ret.map_or(Op::Exit, Op::Jump);
                self.push(op);
            }
            "trap" | "brkpt" => self.push(Op::Trap),
            "call" => self.call(s, m)?,
            "membar" | "fence" => self.fence(m)?,
            "prefetch" | "prefetchu" | "applypriority" | "discard" | "createpolicy" => {
                if s.name == "createpolicy" {
                    // A policy is a hint: any value will do.
                    let (out, zero) = (self.dest(&s.operands[0])?, self.constant(0));
                    self.push(Op::Move(out, zero));
                } else {
                    self.push(Op::Nothing);
                }
                while m.first().is_some() {}
            }
            "nanosleep" | "pmevent" => {
                while m.first().is_some() {}
                self.push(Op::Nothing);
            }
            "griddepcontrol" => {
                if m.any(&["launch_dependents", "wait"]).is_none() {
                    return Err("`griddepcontrol` wants `.wait` or `.launch_dependents`".into());
                }
                self.push(Op::Nothing);
            }
            "setmaxnreg" => {
                if m.any(&["inc", "dec"]).is_none() || !m.take("sync") || !m.take("aligned") {
                    return Err("`setmaxnreg` wants `.inc` or `.dec`, `.sync` and `.aligned`".into());
                }
                let ok = matches!(s.operands[..], [Operand::Integer(n)] if (24..=256).contains(&n) && n % 8 == 0);
                m.ty()?;
                if !ok {
                    return Err("`setmaxnreg` takes a multiple of 8 from 24 to 256".into());
                }
                self.push(Op::Nothing);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn fence(&mut self, m: &mut Modifiers) -> Result<()> {
        if m.take("proxy") {
            while let Some(word) = m.first() {
                if word.starts_with("async") || word.starts_with("alias") || word.starts_with("tensormap") {
                    continue;
                }
                if !["acq_rel", "acquire", "release", "cta", "cluster", "gpu", "sys", "global", "shared::cta"]
                    .contains(&word)
                    && !word.starts_with("sync_restrict")
                {
                    return Err(format!("`.{word}` in a proxy fence"));
                }
            }
            self.push(Op::ProxyFence);
            return Ok(());
        }
        // A fence of the device or the system; `membar.cta` and the like order what this machine already orders.
        let mut device = false;
        while let Some(word) = m.first() {
            device |= matches!(word, "gpu" | "sys" | "gl");
            let known = ["sc", "acq_rel", "acquire", "release", "cta", "cluster", "gpu", "sys", "gl", "mbarrier_init"];
            if !known.contains(&word) && !word.starts_with("sync_restrict") {
                return Err(format!("`.{word}` in a fence"));
            }
        }
        self.push(if device { Op::DeviceFence } else { Op::Nothing });
        Ok(())
    }

    fn call(&mut self, s: &Statement, m: &mut Modifiers) -> Result<()> {
        m.take("uni");
        if s.guard.is_some() {
            return Err("guarded calls are not known to this machine".into());
        }
        let at = s.operands.iter().position(|o| matches!(o, Operand::Name(_))).ok_or("a call without a name")?;
        let Operand::Name(name) = &s.operands[at] else { return Err("a call without a name".into()) };
        let list = |o: Option<&Operand>| match o {
            Some(Operand::List(list)) => list.clone(),
            _ => Vec::new(),
        };
        let results = if at > 0 { list(s.operands.first()) } else { Vec::new() };
        let arguments = list(s.operands.get(at + 1));
        let text = self.text;
        let Some(function) = text.functions.iter().find(|f| f.name == *name && !f.entry) else {
            return Err(format!("no function `{name}` with a body in this module"));
        };
        if results.len() != function.results.len() || arguments.len() != function.parameters.len() {
            return Err(format!("`{name}` takes {} and returns {}", function.parameters.len(), function.results.len()));
        }
        let mut names = HashMap::new();
        for (variable, actual) in function.parameters.iter().zip(&arguments) {
            self.bind(&mut names, variable, actual, true)?;
        }
        let mut copies = Vec::new();
        for (variable, actual) in function.results.iter().zip(&results) {
            let found = self.bind(&mut names, variable, actual, false)?;
            copies.extend(found);
        }
        let end = self.label();
        let outer = self.ret.replace(end);
        self.depth += 1;
        let done = self.function(function, names);
        self.depth -= 1;
        self.ret = outer;
        done.map_err(|e| format!("in `{name}`: {e}"))?;
        self.place_label(end);
        for (to, from) in copies {
            self.push(Op::Move(to, from));
        }
        Ok(())
    }

    /// Binds a formal parameter: memory by its place, registers by copy; returns the copy due after the call.
    fn bind(
        &mut self,
        names: &mut HashMap<String, Symbol>,
        formal: &Variable,
        actual: &Operand,
        argument: bool,
    ) -> Result<Option<(crate::op::Reg, crate::op::Reg)>> {
        let Some(ty) = formal.register else {
            let Operand::Name(name) = actual else { return Err(format!("{actual:?} as a `.param` argument")) };
            let symbol = self.symbol(name)?;
            if !matches!(symbol, Symbol::Memory { .. }) {
                return Err(format!("`{name}` is no `.param` variable"));
            }
            names.insert(formal.name.clone(), symbol);
            return Ok(None);
        };
        let inner = self.new_reg();
        names.insert(formal.name.clone(), Symbol::Register(inner));
        if argument {
            let from = self.source(actual, ty)?;
            self.push(Op::Move(inner, from));
            return Ok(None);
        }
        Ok(Some((self.dest(actual)?, inner)))
    }
}
