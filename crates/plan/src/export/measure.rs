//! The quantities that rules of export are written in.

use serde::Serialize;

use crate::chip::Chip;

/// The format of numbers that a total processing performance comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    Fp8,
    Int8,
    Bf16,
    Fp4,
    /// None: the press states the product.
    Stated,
}

/// Total processing performance: tera-operations per second times the bits of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tpp {
    pub value: f64,
    pub basis: Precision,
}

/// `max over formats of 2 x MacTOPS x bits`, dense, of the whole package (3A090, technical note 1).
///
/// Taken over the rates that are published: an empty cell beside others means that nobody claims
/// more there. `None` where there is none at all.
pub fn total_processing_performance(chip: &Chip) -> Option<Tpp> {
    let rates = [
        (Precision::Fp8, chip.fp8, 8.0),
        (Precision::Int8, chip.int8, 8.0),
        (Precision::Bf16, chip.bf16, 16.0),
        (Precision::Fp4, chip.fp4, 4.0),
    ];
    let mut best: Option<Tpp> = None;
    for (basis, rate, bits) in rates {
        let Some(rate) = rate else { continue };
        let value = rate.0 / 1e12 * bits;
        if best.is_none_or(|best| value > best.value) {
            best = Some(Tpp { value, basis });
        }
    }
    let stated = chip.tpp_published.map(|value| Tpp {
        value,
        basis: Precision::Stated,
    });
    best.or(stated)
}

/// TPP per mm2 of applicable die area: logic on a non-planar process, memory left out (technical
/// note 3 of 2023). `None` where either is unknown.
pub fn performance_density(chip: &Chip) -> Option<f64> {
    let tpp = total_processing_performance(chip)?;
    Some(tpp.value / chip.die_mm2?)
}

/// The scale-up link in GB/s, both directions together; twice the one direction where vendors give
/// no total. The link to the host and the network are not in it.
pub fn io_total(chip: &Chip) -> Option<f64> {
    let doubled = chip.scale_up.map(|one_way| one_way * 2.0);
    let total = chip.scale_up_total.or(doubled);
    total.map(|bandwidth| bandwidth.0 / 1e9)
}
