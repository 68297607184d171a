//! The written working: partial products with carries, and their sum.

use super::digits;
use crate::writer::Writer;

pub(super) fn write([a, b]: [u32; 2], writer: &mut Writer) {
    let mut total = 0;
    for (place, &digit) in digits(b).iter().rev().enumerate() {
        let partial = a * digit * 10_u32.pow(place as u32);
        if place > 0 {
            writer.word(";");
        }
        write_partial(a, digit, partial, writer);
        if place > 0 {
            writer.word(";");
            write_sum(total, partial, writer);
        }
        total += partial;
    }
}

/// `7 * 6 + 0 = 4 2 ; 4 * 6 + 4 = 2 8 : 2 8 2`
fn write_partial(a: u32, digit: u32, partial: u32, writer: &mut Writer) {
    let mut carry = 0;
    for (column, &other) in digits(a).iter().rev().enumerate() {
        if column > 0 {
            writer.word(";");
        }
        carry = write_column("*", [other, digit, carry], other * digit + carry, writer);
    }
    write_result(partial, writer);
}

/// `2 + 0 + 0 = 0 2 ; … : 1 6 9 2`, as many columns as the longer of the two has.
fn write_sum(total: u32, partial: u32, writer: &mut Writer) {
    let columns = digits(total).len().max(digits(partial).len());
    let mut carry = 0;
    for column in 0..columns {
        if column > 0 {
            writer.word(";");
        }
        let [x, y] = [total, partial].map(|number| number / 10_u32.pow(column as u32) % 10);
        carry = write_column("+", [x, y, carry], x + y + carry, writer);
    }
    write_result(total + partial, writer);
}

/// `x sign y + carry = tens ones`; returns the tens, which are the next column's carry.
fn write_column(sign: &str, [x, y, carry]: [u32; 3], value: u32, writer: &mut Writer) -> u32 {
    let (tens, ones) = (value / 10, value % 10);
    writer.word(x);
    writer.word(sign);
    writer.word(y);
    writer.word("+");
    writer.word(carry);
    writer.word("=");
    writer.words([tens, ones]);
    tens
}

fn write_result(number: u32, writer: &mut Writer) {
    writer.word(":");
    writer.words(digits(number));
}
