//! Quantities with their units in the type: a time cannot be added to a cost, and dividing
//! operations by a rate gives a time.
//!
//! Each is an `f64` in the unit of its documentation; products and quotients exist for the
//! relations listed at the end of this file and for no others.

use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Sub};

use serde::{Deserialize, Serialize};

macro_rules! quantities {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub f64);

        impl $name {
            pub const ZERO: $name = $name(0.0);

            pub fn max(self, other: $name) -> $name {
                $name(self.0.max(other.0))
            }

            pub fn min(self, other: $name) -> $name {
                $name(self.0.min(other.0))
            }
        }

        impl Add for $name {
            type Output = $name;
            fn add(self, other: $name) -> $name {
                $name(self.0 + other.0)
            }
        }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: $name) {
                self.0 += other.0;
            }
        }

        impl Sub for $name {
            type Output = $name;
            fn sub(self, other: $name) -> $name {
                $name(self.0 - other.0)
            }
        }

        impl Mul<f64> for $name {
            type Output = $name;
            fn mul(self, factor: f64) -> $name {
                $name(self.0 * factor)
            }
        }

        impl Div<f64> for $name {
            type Output = $name;
            fn div(self, divisor: f64) -> $name {
                $name(self.0 / divisor)
            }
        }

        /// How many times the other fits.
        impl Div<$name> for $name {
            type Output = f64;
            fn div(self, other: $name) -> f64 {
                self.0 / other.0
            }
        }

        impl Sum for $name {
            fn sum<I: Iterator<Item = $name>>(parts: I) -> $name {
                $name(parts.map(|part| part.0).sum())
            }
        }
    )*};
}

quantities! {
    /// Floating-point operations; a multiply-add is two.
    Flops
    /// Floating-point operations per second.
    FlopsPerSecond
    /// Floating-point operations per token.
    FlopsPerToken
    Bytes
    BytesPerSecond
    Seconds
    Tokens
    TokensPerSecond
    /// Chips times the seconds that they are held.
    ChipSeconds
    /// A number of chips; in arithmetic, not as a count of things.
    Chips
    /// US dollars.
    Dollars
    /// US dollars for a chip held a second.
    DollarsPerChipSecond
    Watts
    Joules
}

/// `a = b * c`, and what follows from it.
macro_rules! relations {
    ($($a:ident = $b:ident * $c:ident;)*) => {$(
        impl Mul<$c> for $b {
            type Output = $a;
            fn mul(self, other: $c) -> $a {
                $a(self.0 * other.0)
            }
        }

        impl Mul<$b> for $c {
            type Output = $a;
            fn mul(self, other: $b) -> $a {
                $a(self.0 * other.0)
            }
        }

        impl Div<$b> for $a {
            type Output = $c;
            fn div(self, other: $b) -> $c {
                $c(self.0 / other.0)
            }
        }

        impl Div<$c> for $a {
            type Output = $b;
            fn div(self, other: $c) -> $b {
                $b(self.0 / other.0)
            }
        }
    )*};
}

relations! {
    Flops = FlopsPerSecond * Seconds;
    Flops = FlopsPerToken * Tokens;
    FlopsPerSecond = FlopsPerToken * TokensPerSecond;
    Bytes = BytesPerSecond * Seconds;
    Tokens = TokensPerSecond * Seconds;
    ChipSeconds = Chips * Seconds;
    Dollars = DollarsPerChipSecond * ChipSeconds;
    Joules = Watts * Seconds;
}

impl Seconds {
    pub fn from_hours(hours: f64) -> Seconds {
        Seconds(hours * 3600.0)
    }

    pub fn from_days(days: f64) -> Seconds {
        Seconds(days * 86_400.0)
    }

    pub fn hours(self) -> f64 {
        self.0 / 3600.0
    }

    pub fn days(self) -> f64 {
        self.0 / 86_400.0
    }
}

impl ChipSeconds {
    pub fn from_hours(hours: f64) -> ChipSeconds {
        ChipSeconds(hours * 3600.0)
    }

    pub fn hours(self) -> f64 {
        self.0 / 3600.0
    }
}

impl DollarsPerChipSecond {
    pub fn from_hourly(dollars: f64) -> DollarsPerChipSecond {
        DollarsPerChipSecond(dollars / 3600.0)
    }

    pub fn hourly(self) -> f64 {
        self.0 * 3600.0
    }
}

impl Joules {
    pub fn megawatt_hours(self) -> f64 {
        self.0 / 3.6e9
    }
}
