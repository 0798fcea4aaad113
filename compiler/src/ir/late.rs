//! Late order: what costs nothing to wait stands right before what reads it, so that few values are live at once.
//!
//! Reads a kernel, makes the same kernel with other places of pure instructions within their blocks. Always holds: every
//! value is made once, of the same operands, before it is read; loads, stores, products and everything that others can see
//! keep their order. Families decode all weights of a block before they multiply the first; in this order each fragment is
//! made for its own product, as a scheduler would do it.

use super::kernel::{Block, Inst, Kernel, Statement};
use super::pressure::words;
use super::types::{Type, Value};
use smallvec::SmallVec;

/// The kernel in late order.
pub fn late(mut kernel: Kernel) -> Kernel {
    let count = kernel.types.len();
    let (mut readers, mut constant) = (vec![0; count], vec![false; count]);
    kernel.body.each(&mut |statement| {
        statement.inst.operands().into_iter().for_each(|value| readers[value.0 as usize] += 1);
        if matches!(statement.inst, Inst::Const(_)) {
            statement.results.iter().for_each(|value| constant[value.0 as usize] = true);
        }
    });
    let none = || vec![0; count];
    let mut order = Order {
        types: &kernel.types,
        readers,
        constant,
        made: none(),
        read: none(),
        last: vec![0; count],
        first: vec![0; count],
        held: vec![None; count],
        block: 0,
    };
    order.block(&mut kernel.body);
    kernel
}

struct Order<'k> {
    types: &'k [Type],
    /// How many operands a value is, in all blocks.
    readers: Vec<u32>,
    constant: Vec<bool>,
    /// The last block that was found to make a value, and to read it: blocks are counted from 1.
    made: Vec<u32>,
    read: Vec<u32>,
    /// The last statement of the current block that reads a value.
    last: Vec<usize>,
    /// In front of which statement of the current block a value is needed first.
    first: Vec<usize>,
    /// Of a value that may wait: the words that have to be held until it is made, and would not be otherwise.
    held: Vec<Option<u32>>,
    block: u32,
}

impl Order<'_> {
    fn block(&mut self, block: &mut Block) {
        for statement in &mut block.statements {
            match &mut statement.inst {
                Inst::For(inner) => self.block(&mut inner.body),
                Inst::If(inner) => {
                    self.block(&mut inner.then);
                    self.block(&mut inner.otherwise);
                }
                _ => {}
            }
        }
        self.block += 1;
        let operands: Vec<SmallVec<[Value; 4]>> = block.statements.iter().map(operands).collect();
        for value in block.statements.iter().flat_map(|statement| &statement.results) {
            self.made[value.0 as usize] = self.block;
        }
        for (number, list) in operands.iter().enumerate() {
            list.iter().for_each(|value| self.last[value.0 as usize] = number);
        }
        for (number, statement) in block.statements.iter().enumerate() {
            self.hold(number, statement, &operands[number]);
        }
        // Last to first: all readers of a result come before the statement that makes it.
        let mut places = vec![0; block.statements.len()];
        for (number, statement) in block.statements.iter().enumerate().rev() {
            places[number] = match statement.results.as_slice() {
                &[result] if self.held[result.0 as usize].is_some() && self.read[result.0 as usize] == self.block => {
                    self.first[result.0 as usize]
                }
                _ => number,
            };
            for &value in &operands[number] {
                let at = value.0 as usize;
                let known = self.read[at] == self.block;
                self.first[at] = if known { self.first[at].min(places[number]) } else { places[number] };
                self.read[at] = self.block;
            }
        }
        let mut numbers: Vec<usize> = (0..places.len()).collect();
        numbers.sort_unstable_by_key(|&number| (places[number], number == places[number], number));
        permute(&mut block.statements, numbers);
    }

    /// Finds out whether a statement may wait: where what it holds is no larger than its result. An operand for this
    /// statement alone waits with it, and holds what it holds itself.
    fn hold(&mut self, number: usize, statement: &Statement, operands: &[Value]) {
        let &[result] = statement.results.as_slice() else { return };
        if !waits(&statement.inst) {
            return;
        }
        let ends = |value: &&Value| {
            let at = value.0 as usize;
            self.made[at] == self.block && !self.constant[at] && self.last[at] == number
        };
        let words_of = |value: &Value| words(self.types[value.0 as usize]);
        let held = |value: &Value| match self.held[value.0 as usize] {
            Some(held) if self.readers[value.0 as usize] == 1 => held,
            _ => words_of(value),
        };
        let held: u32 = operands.iter().filter(ends).map(held).sum();
        if held <= words_of(&result) {
            self.held[result.0 as usize] = Some(held);
        }
    }
}

/// Puts at each place what stood at the place that `numbers` names, each place once.
fn permute<T>(list: &mut [T], mut numbers: Vec<usize>) {
    for start in 0..list.len() {
        let mut place = start;
        while numbers[place] != start {
            let from = std::mem::replace(&mut numbers[place], place);
            list.swap(place, from);
            place = from;
        }
        numbers[place] = place;
    }
}

/// What a statement reads, with its bodies, each value once.
fn operands(statement: &Statement) -> SmallVec<[Value; 4]> {
    let mut list = SmallVec::new();
    statement.each(&mut |inside| list.extend(inside.inst.operands()));
    list.sort_unstable();
    list.dedup();
    list
}

/// Whether an instruction may wait: it is cheap, and neither sees nor changes anything but its operands. Lanes of a vector
/// are taken out where the vector is, since each of them alone takes fewer registers.
fn waits(inst: &Inst) -> bool {
    inst.is_pure()
        && !matches!(
            inst,
            Inst::Const(_)
                | Inst::Arg(_)
                | Inst::Builtin(_)
                | Inst::Extract { .. }
                | Inst::Dot4 { .. }
                | Inst::Dot2 { .. }
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{live_words, parse};

    #[test]
    fn what_is_cheap_waits_for_its_reader_and_memory_keeps_its_order() {
        let text = "kernel @k(x: read align 16, y: write align 16) workgroup 1 1 1 {
          %0: i32 = load x[0] align 4
          %1: i32 = const 4
          %2: i32 = shr_u %0, %1
          %3: i32 = const 15
          %4: i32 = and %0, %3
          store y[0] align 4, %4
          store y[4] align 4, %2
        }";
        let expected = "kernel @k(x: read align 16, y: write align 16) workgroup 1 1 1 {
          %0: i32 = load x[0] align 4
          %1: i32 = const 4
          %3: i32 = const 15
          %4: i32 = and %0, %3
          store y[0] align 4, %4
          %2: i32 = shr_u %0, %1
          store y[4] align 4, %2
        }";
        assert_eq!(late(parse(text).unwrap()), parse(expected).unwrap());
    }

    #[test]
    fn decoding_before_use_takes_fewer_registers() {
        let fields = |order: &[usize]| {
            let mut text = String::from(
                "kernel @k(x: read align 16, y: write align 16) workgroup 1 1 1 {\n%0: i32 = load x[0] align 4\n",
            );
            for field in 0..6 {
                text += &format!("%{}: i32 = const {field}\n", 1 + field);
            }
            for &step in order {
                if step < 6 {
                    text += &format!("%{}: i32 = shr_u %0, %{}\n", 7 + step, 1 + step);
                } else {
                    text += &format!("store y[{}] align 4, %{}\n", 4 * (step - 6), 1 + step);
                }
            }
            parse(&(text + "}")).unwrap()
        };
        let early = fields(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        let before = live_words(&early);
        assert_eq!(live_words(&late(early)), before - 4, "the word and one field instead of six");
    }
}
