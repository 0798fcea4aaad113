//! The metadata values of GGUF: thirteen types, arrays among them.
//!
//! Reads a cursor or makes bytes; both directions stand here, side by side, so that they cannot drift apart. Always
//! holds: an array is only allocated after the file is known to be long enough to fill it.

use super::cursor::Cursor;
use bitsmith_compiler::{Error, Result};
use std::fmt::Display;

/// Arrays may hold arrays; deeper than this is a damaged or hostile file.
const MAX_DEPTH: usize = 4;

/// The type ids, by position.
const TYPE_NAMES: [&str; 13] =
    ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"];

macro_rules! values {
    ($($id:literal $variant:ident $ty:ty, $size:literal, $doc:literal;)*) => {
        /// One metadata value.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Value {
            $(#[doc = $doc] $variant($ty),)*
            /// True or false, one byte.
            Bool(bool),
            /// UTF-8 text.
            String(String),
            /// Values of one type.
            Array(Array),
        }

        /// An array of values of one type.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Array {
            $(#[doc = $doc] $variant(Vec<$ty>),)*
            /// Truth values.
            Bool(Vec<bool>),
            /// Texts, such as the tokens of a vocabulary.
            String(Vec<String>),
            /// Arrays, each with its own type.
            Array(Vec<Array>),
        }

        impl Value {
            /// The type id in the file.
            pub fn type_id(&self) -> u32 {
                match self {
                    $(Value::$variant(_) => $id,)*
                    Value::Bool(_) => 7,
                    Value::String(_) => 8,
                    Value::Array(_) => 9,
                }
            }

            /// Reads a value of the type `id` for the key `what`.
            pub(super) fn read(cursor: &mut Cursor<'_>, id: u32, what: &dyn Display) -> Result<Value> {
                Ok(match id {
                    $($id => Value::$variant(<$ty>::from_le_bytes(cursor.array(what)?)),)*
                    7 => Value::Bool(read_bool(cursor, what)?),
                    8 => Value::String(cursor.string(what)?),
                    9 => Value::Array(Array::read(cursor, what, 0)?),
                    _ => return Err(unknown(cursor, id, what)),
                })
            }

            /// Appends the value, without its type id.
            pub(super) fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Value::$variant(value) => out.extend(value.to_le_bytes()),)*
                    Value::Bool(value) => out.push(u8::from(*value)),
                    Value::String(value) => write_string(out, value),
                    Value::Array(value) => value.write(out),
                }
            }
        }

        impl Array {
            /// The type id of the elements.
            pub fn element_id(&self) -> u32 {
                match self {
                    $(Array::$variant(_) => $id,)*
                    Array::Bool(_) => 7,
                    Array::String(_) => 8,
                    Array::Array(_) => 9,
                }
            }

            /// How many elements.
            pub fn len(&self) -> usize {
                match self {
                    $(Array::$variant(items) => items.len(),)*
                    Array::Bool(items) => items.len(),
                    Array::String(items) => items.len(),
                    Array::Array(items) => items.len(),
                }
            }

            fn read(cursor: &mut Cursor<'_>, what: &dyn Display, depth: usize) -> Result<Array> {
                if depth >= MAX_DEPTH {
                    let limit = format!("{what}: arrays are nested deeper than {MAX_DEPTH}");
                    return Err(cursor.fault(limit));
                }
                let id = cursor.u32(what)?;
                let count = cursor.u64(what)?;
                Ok(match id {
                    $($id => Array::$variant(items(cursor, count, $size, what, |c| Ok(<$ty>::from_le_bytes(c.array(what)?)))?),)*
                    7 => Array::Bool(items(cursor, count, 1, what, |c| read_bool(c, what))?),
                    8 => Array::String(items(cursor, count, 8, what, |c| c.string(what))?),
                    9 => Array::Array(items(cursor, count, 12, what, |c| Array::read(c, what, depth + 1))?),
                    _ => return Err(unknown(cursor, id, what)),
                })
            }

            fn write(&self, out: &mut Vec<u8>) {
                out.extend(self.element_id().to_le_bytes());
                out.extend((self.len() as u64).to_le_bytes());
                match self {
                    $(Array::$variant(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),)*
                    Array::Bool(items) => out.extend(items.iter().map(|&item| u8::from(item))),
                    Array::String(items) => items.iter().for_each(|item| write_string(out, item)),
                    Array::Array(items) => items.iter().for_each(|item| item.write(out)),
                }
            }
        }
    };
}

values! {
    0 U8 u8, 1, "Unsigned, 8 bits.";
    1 I8 i8, 1, "Signed, 8 bits.";
    2 U16 u16, 2, "Unsigned, 16 bits.";
    3 I16 i16, 2, "Signed, 16 bits.";
    4 U32 u32, 4, "Unsigned, 32 bits.";
    5 I32 i32, 4, "Signed, 32 bits.";
    6 F32 f32, 4, "IEEE binary32.";
    10 U64 u64, 8, "Unsigned, 64 bits.";
    11 I64 i64, 8, "Signed, 64 bits.";
    12 F64 f64, 8, "IEEE binary64.";
}

impl Value {
    /// The value as a count, where it is an integer that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(value) => Some(value.into()),
            Value::U16(value) => Some(value.into()),
            Value::U32(value) => Some(value.into()),
            Value::U64(value) => Some(value),
            Value::I8(value) => value.try_into().ok(),
            Value::I16(value) => value.try_into().ok(),
            Value::I32(value) => value.try_into().ok(),
            Value::I64(value) => value.try_into().ok(),
            Value::F32(_) | Value::F64(_) | Value::Bool(_) | Value::String(_) | Value::Array(_) => None,
        }
    }

    /// The value as a number, where it is a float.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(value) => Some(value.into()),
            Value::F64(value) => Some(value),
            _ => None,
        }
    }

    /// The value as text.
    pub fn as_str(&self) -> Option<&str> {
        if let Value::String(value) = self { Some(value) } else { None }
    }

    /// The value as an array.
    pub fn as_array(&self) -> Option<&Array> {
        if let Value::Array(value) = self { Some(value) } else { None }
    }

    /// The name of the value's type.
    pub fn type_name(&self) -> &'static str {
        TYPE_NAMES[self.type_id() as usize]
    }
}

impl Array {
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How deep arrays lie in arrays: 0 for plain elements.
    pub(super) fn depth(&self) -> usize {
        if let Array::Array(items) = self { 1 + items.iter().map(Array::depth).max().unwrap_or(0) } else { 0 }
    }

    /// Whether a reader accepts the nesting.
    pub(super) fn is_readable(&self) -> bool {
        self.depth() < MAX_DEPTH
    }
}

/// Reads `count` items of at least `size` bytes each; the room is checked before anything is allocated.
fn items<T>(
    cursor: &mut Cursor<'_>,
    count: u64,
    size: usize,
    what: &dyn Display,
    mut read: impl FnMut(&mut Cursor<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let room = cursor.left() / size;
    let Some(count) = usize::try_from(count).ok().filter(|&count| count <= room) else {
        let limit = format!("{what}: the array says {count} elements, the rest of the file has room for {room}");
        return Err(cursor.fault(limit));
    };
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        items.push(read(cursor)?);
    }
    Ok(items)
}

fn read_bool(cursor: &mut Cursor<'_>, what: &dyn Display) -> Result<bool> {
    match cursor.array::<1>(what)?[0] {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(cursor.fault(format!("{what}: a bool is the byte {other}; accepted: 0, 1"))),
    }
}

fn unknown(cursor: &Cursor<'_>, id: u32, what: &dyn Display) -> Error {
    let names: Vec<_> = TYPE_NAMES.iter().enumerate().map(|(id, name)| format!("{id}={name}")).collect();
    cursor.fault(format!("{what}: value type {id} is unknown; accepted: {}", names.join(" ")))
}

pub(super) fn write_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
