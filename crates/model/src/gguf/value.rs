//! The values that metadata keys hold.

/// A metadata value, of the type that the file gives it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array, whose elements all have one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    Str(Vec<String>),
    Nested(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Names of the value types, in the order of their numbers in the file.
pub(super) const TYPE_NAMES: [&str; 13] = [
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64",
];

impl Value {
    /// The number of its type in a file.
    pub(super) fn type_number(&self) -> u32 {
        match self {
            Value::U8(_) => 0,
            Value::I8(_) => 1,
            Value::U16(_) => 2,
            Value::I16(_) => 3,
            Value::U32(_) => 4,
            Value::I32(_) => 5,
            Value::F32(_) => 6,
            Value::Bool(_) => 7,
            Value::Str(_) => 8,
            Value::Array(_) => 9,
            Value::U64(_) => 10,
            Value::I64(_) => 11,
            Value::F64(_) => 12,
        }
    }

    /// What it is, for an error: `u32`, or `array of i8`.
    pub(super) fn type_name(&self) -> String {
        match self {
            Value::Array(array) => {
                format!("array of {}", TYPE_NAMES[array.element_number() as usize])
            }
            other => TYPE_NAMES[other.type_number() as usize].to_string(),
        }
    }

    /// Any integer type.
    pub(super) fn integer(&self) -> Option<i128> {
        Some(match self {
            Value::U8(value) => i128::from(*value),
            Value::I8(value) => i128::from(*value),
            Value::U16(value) => i128::from(*value),
            Value::I16(value) => i128::from(*value),
            Value::U32(value) => i128::from(*value),
            Value::I32(value) => i128::from(*value),
            Value::U64(value) => i128::from(*value),
            Value::I64(value) => i128::from(*value),
            _ => return None,
        })
    }

    /// Either floating-point type.
    pub(super) fn float(&self) -> Option<f32> {
        match self {
            Value::F32(value) => Some(*value),
            Value::F64(value) => Some(*value as f32),
            _ => None,
        }
    }
}

impl Array {
    /// The number of its elements' type in a file.
    pub(super) fn element_number(&self) -> u32 {
        match self {
            Array::U8(_) => 0,
            Array::I8(_) => 1,
            Array::U16(_) => 2,
            Array::I16(_) => 3,
            Array::U32(_) => 4,
            Array::I32(_) => 5,
            Array::F32(_) => 6,
            Array::Bool(_) => 7,
            Array::Str(_) => 8,
            Array::Nested(_) => 9,
            Array::U64(_) => 10,
            Array::I64(_) => 11,
            Array::F64(_) => 12,
        }
    }

    /// The elements, if they are integers that fit 64 bits with a sign.
    pub(super) fn integers(&self) -> Option<Vec<i64>> {
        fn wide<T: Copy + TryInto<i64>>(values: &[T]) -> Option<Vec<i64>> {
            values.iter().map(|&value| value.try_into().ok()).collect()
        }
        match self {
            Array::U8(values) => wide(values),
            Array::I8(values) => wide(values),
            Array::U16(values) => wide(values),
            Array::I16(values) => wide(values),
            Array::U32(values) => wide(values),
            Array::I32(values) => wide(values),
            Array::U64(values) => wide(values),
            Array::I64(values) => wide(values),
            _ => None,
        }
    }

    /// The elements, if they are of a floating-point type: integers are never taken for floats.
    pub(super) fn floats(&self) -> Option<Vec<f32>> {
        match self {
            Array::F32(values) => Some(values.clone()),
            Array::F64(values) => Some(values.iter().map(|&value| value as f32).collect()),
            _ => None,
        }
    }
}
