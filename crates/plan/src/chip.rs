//! Accelerators: what each can do, and who says so.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use csv::StringRecord;
use serde::Serialize;

use crate::date::Date;
use crate::error::Error;
use crate::interval::Interval;
use crate::nearest::{nearest, simplified};
use crate::quantity::{
    Bytes, BytesPerSecond, Dollars, DollarsPerChipSecond, FlopsPerSecond, Watts,
};

const CATALOGUE: &str = include_str!("../data/accelerators.csv");
/// What errors call the table that ships with the program.
const CATALOGUE_FILE: &str = "accelerators.csv";

/// An accelerator as it is sold or rented: a package, which may hold several dies.
///
/// A field is `None` where nothing was published, never 0.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chip {
    /// What a user types: short, lower case, unique.
    pub key: String,
    pub name: String,
    pub vendor: String,
    /// Whether it is made in the People's Republic of China, so that US rules of export are not
    /// the question.
    pub prc_origin: bool,
    pub market: Market,
    /// May be a month only.
    pub launch: Option<Date>,
    /// Dense matrix products of 16-bit floats; FP16 where the chip has no BF16.
    pub bf16: Option<FlopsPerSecond>,
    /// Dense, as are the following.
    pub fp8: Option<FlopsPerSecond>,
    /// Operations on integers, counted like those on floats.
    pub int8: Option<FlopsPerSecond>,
    pub fp4: Option<FlopsPerSecond>,
    /// The total processing performance that the press states, where no rates are published.
    pub tpp_published: Option<f64>,
    /// 1 GB counted as 1e9 bytes. Devices report about 7 % more (GiB): that share stands for the
    /// driver's context, the buffers of the network library and fragmentation, which nothing else
    /// in a plan accounts for.
    pub memory: Option<Bytes>,
    pub memory_kind: String,
    pub memory_bandwidth: Option<BytesPerSecond>,
    /// The link to the other chips of its scale-up domain.
    pub scale_up_link: String,
    /// Per chip and per direction.
    pub scale_up: Option<BytesPerSecond>,
    /// Per chip, both directions together, as vendors and export rules count.
    pub scale_up_total: Option<BytesPerSecond>,
    /// Chips in one scale-up domain: 8 in an HGX box, 72 in an NVL72, 1 with PCIe alone, the pod of
    /// a TPU.
    pub scale_up_chips: Option<u64>,
    /// The network beyond the domain, per chip and per direction, in the usual box.
    pub scale_out: Option<BytesPerSecond>,
    /// Of the package alone.
    pub power: Option<Watts>,
    pub power_kind: String,
    /// Area of the logic dies, without memory.
    pub die_mm2: Option<f64>,
    pub die_note: String,
    /// At release, or in the first shops; no quotation.
    pub price: Option<Dollars>,
    /// Rent on demand, from the cheapest to the dearest that was found.
    pub hourly: Option<Interval<DollarsPerChipSecond>>,
    /// Who asked that rent, and when.
    pub hourly_source: String,
    /// The best large matrix product that anyone measured, as a share of `bf16`.
    pub gemm_bf16: Option<f64>,
    /// The same of `fp8`.
    pub gemm_fp8: Option<f64>,
    pub source: String,
    pub notes: String,
}

/// Whom a chip is designed and marketed for, which export rules ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Market {
    Datacentre,
    Consumer,
    /// In its maker's own datacentres, for rent only.
    Cloud,
}

impl Market {
    pub fn as_str(self) -> &'static str {
        match self {
            Market::Datacentre => "datacentre",
            Market::Consumer => "consumer",
            Market::Cloud => "cloud",
        }
    }

    /// As the catalogue writes it, or as `as_str` does.
    pub fn parse(text: &str) -> Option<Market> {
        match text {
            "dc" | "datacentre" => Some(Market::Datacentre),
            "consumer" => Some(Market::Consumer),
            "cloud" => Some(Market::Cloud),
            _ => None,
        }
    }
}

/// The chips that ship with the program, `data/accelerators.csv`.
pub fn catalogue() -> &'static [Chip] {
    static CHIPS: OnceLock<Vec<Chip>> = OnceLock::new();
    CHIPS.get_or_init(|| match from_csv(CATALOGUE_FILE, CATALOGUE) {
        Ok(chips) => chips,
        Err(error) => panic!("the catalogue that ships with the program: {error}"),
    })
}

/// A chip of [`catalogue`].
///
/// # Errors
/// [`Error::UnknownChip`].
pub fn find(name: &str) -> Result<&'static Chip, Error> {
    find_in(catalogue(), name)
}

/// A chip by its key or name; case, spaces, hyphens and brackets count for nothing.
///
/// # Errors
/// [`Error::UnknownChip`] with the keys that are spelt alike.
pub fn find_in<'a>(chips: &'a [Chip], name: &str) -> Result<&'a Chip, Error> {
    let wanted = simplified(name);
    let by_key = chips.iter().find(|chip| simplified(&chip.key) == wanted);
    let by_name = || chips.iter().find(|chip| simplified(&chip.name) == wanted);
    by_key.or_else(by_name).ok_or_else(|| Error::UnknownChip {
        name: name.to_string(),
        nearest: nearest_keys(chips, name),
    })
}

/// Keys that are spelt alike, or else those of chips whose names are.
fn nearest_keys(chips: &[Chip], name: &str) -> Vec<String> {
    let keys = nearest(name, chips.iter().map(|chip| chip.key.as_str()));
    if !keys.is_empty() {
        return keys;
    }
    let names = nearest(name, chips.iter().map(|chip| chip.name.as_str()));
    let key = |name: &String| chips.iter().find(|chip| chip.name == *name);
    let keys = names.iter().filter_map(key);
    keys.map(|chip| chip.key.clone()).collect()
}

/// Chips from CSV with the columns of `data/accelerators.csv` in any order; of these only `key`,
/// `name`, `vendor` and `market` must be there, and an empty cell means that nothing is known.
///
/// `file` is what errors call it.
///
/// # Errors
/// [`Error::Data`] with the line and the column.
pub fn from_csv(file: &str, text: &str) -> Result<Vec<Chip>, Error> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let headers = reader.headers().map_err(|error| malformed(file, &error))?;
    let headers = headers.clone();
    check_headers(file, &headers)?;
    let mut keys = BTreeSet::new();
    let mut chips = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| malformed(file, &error))?;
        let line = record.position().map_or(0, csv::Position::line);
        let row = Row {
            file,
            line,
            headers: &headers,
            record: &record,
        };
        let chip = row.chip()?;
        if !keys.insert(simplified(&chip.key)) {
            return Err(row.error("key", format!("{:?} is there twice", chip.key)));
        }
        chips.push(chip);
    }
    if chips.is_empty() {
        return Err(whole(file, "it holds no chip"));
    }
    Ok(chips)
}

fn whole(file: &str, message: impl Into<String>) -> Error {
    Error::Data {
        file: file.to_string(),
        line: 0,
        field: String::new(),
        message: message.into(),
    }
}

fn malformed(file: &str, error: &csv::Error) -> Error {
    let line = error.position().map_or(0, csv::Position::line);
    let message = match error.kind() {
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => format!("{len} cells where the header has {expected_len}"),
        _ => error.to_string(),
    };
    Error::Data {
        file: file.to_string(),
        line,
        field: String::new(),
        message,
    }
}

/// Every column known and those that must be there present, so that a misspelt header is not read
/// as a column of unknowns.
fn check_headers(file: &str, headers: &StringRecord) -> Result<(), Error> {
    for header in headers {
        if !COLUMNS.contains(&header) {
            let near = nearest(header, COLUMNS.iter().copied());
            let offer = near.first().map(|name| format!("; {name}, perhaps?"));
            let offer = offer.unwrap_or_default();
            let message = format!("a column is called {header:?}, which means nothing{offer}");
            return Err(whole(file, message));
        }
    }
    for column in ["key", "name", "vendor", "market"] {
        if !headers.iter().any(|header| header == column) {
            return Err(whole(file, format!("the column {column:?} is missing")));
        }
    }
    Ok(())
}

const COLUMNS: [&str; 32] = [
    "key",
    "name",
    "vendor",
    "origin",
    "market",
    "launch_date",
    "bf16_fp16_dense_tflops",
    "fp8_dense_tflops",
    "int8_dense_tops",
    "fp4_dense_tflops",
    "tpp_published",
    "mem_gb",
    "mem_type",
    "mem_bw_gbs",
    "scaleup_link",
    "scaleup_gbs_per_direction",
    "scaleup_gbs_total_bidir",
    "scaleup_chips",
    "scaleout_gbit_per_chip_typical",
    "tdp_w",
    "tdp_kind",
    "die_mm2",
    "die_note",
    "price_usd_at_release",
    "usd_per_hour_low",
    "usd_per_hour_mid",
    "usd_per_hour_high",
    "usd_per_hour_source",
    "matmul_efficiency_measured_bf16",
    "matmul_efficiency_measured_fp8",
    "source",
    "notes",
];

/// One line of the table.
struct Row<'a> {
    file: &'a str,
    line: u64,
    headers: &'a StringRecord,
    record: &'a StringRecord,
}

impl Row<'_> {
    fn error(&self, field: &str, message: impl Into<String>) -> Error {
        Error::Data {
            file: self.file.to_string(),
            line: self.line,
            field: field.to_string(),
            message: message.into(),
        }
    }

    /// Empty where the table has no such column.
    fn text(&self, field: &str) -> &str {
        let index = self.headers.iter().position(|header| header == field);
        index
            .and_then(|index| self.record.get(index))
            .unwrap_or_default()
    }

    fn some_text(&self, field: &str) -> Result<String, Error> {
        match self.text(field) {
            "" => Err(self.error(field, "empty")),
            text => Ok(text.to_string()),
        }
    }

    /// A positive number, in the unit that its column's name ends with.
    fn number(&self, field: &str) -> Result<Option<f64>, Error> {
        let text = self.text(field);
        if text.is_empty() {
            return Ok(None);
        }
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() && value > 0.0 => Ok(Some(value)),
            _ => Err(self.error(field, format!("{text:?} is not a number above 0"))),
        }
    }

    fn rate(&self, field: &str) -> Result<Option<FlopsPerSecond>, Error> {
        let rate = self.number(field)?;
        Ok(rate.map(|tera| FlopsPerSecond(tera * 1e12)))
    }

    fn bandwidth(&self, field: &str) -> Result<Option<BytesPerSecond>, Error> {
        let bandwidth = self.number(field)?;
        Ok(bandwidth.map(|giga| BytesPerSecond(giga * 1e9)))
    }

    fn share(&self, field: &str) -> Result<Option<f64>, Error> {
        match self.number(field)? {
            Some(share) if share > 1.0 => {
                Err(self.error(field, format!("{share} is more than the whole, 1")))
            }
            share => Ok(share),
        }
    }

    fn market(&self) -> Result<Market, Error> {
        let text = self.text("market");
        let message = || format!("{text:?} is none of datacentre (dc), consumer, cloud");
        Market::parse(text).ok_or_else(|| self.error("market", message()))
    }

    fn prc_origin(&self) -> Result<bool, Error> {
        match self.text("origin") {
            "" => Ok(false),
            "prc" => Ok(true),
            other => Err(self.error("origin", format!("{other:?} is neither \"prc\" nor empty"))),
        }
    }

    fn launch(&self) -> Result<Option<Date>, Error> {
        match self.text("launch_date") {
            "" => Ok(None),
            text => {
                let date = text.parse();
                date.map(Some)
                    .map_err(|message: String| self.error("launch_date", message))
            }
        }
    }

    fn scale_up_chips(&self) -> Result<Option<u64>, Error> {
        let field = "scaleup_chips";
        match self.text(field) {
            "" => Ok(None),
            text => match text.parse::<u64>() {
                Ok(chips) if chips > 0 => Ok(Some(chips)),
                _ => Err(self.error(field, format!("{text:?} is not a count above 0"))),
            },
        }
    }

    fn hourly(&self) -> Result<Option<Interval<DollarsPerChipSecond>>, Error> {
        let low = self.number("usd_per_hour_low")?;
        let mid = self.number("usd_per_hour_mid")?;
        let high = self.number("usd_per_hour_high")?;
        match (low, mid, high) {
            (None, None, None) => Ok(None),
            (Some(low), Some(mid), Some(high)) if low <= mid && mid <= high => {
                let price = Interval::new(low, mid, high);
                Ok(Some(price.map(DollarsPerChipSecond::from_hourly)))
            }
            _ => {
                let message = "give usd_per_hour_low, _mid and _high, in this order, or none";
                Err(self.error("usd_per_hour_mid", message))
            }
        }
    }

    fn chip(&self) -> Result<Chip, Error> {
        let gigabits = self.number("scaleout_gbit_per_chip_typical")?;
        Ok(Chip {
            key: self.some_text("key")?,
            name: self.some_text("name")?,
            vendor: self.some_text("vendor")?,
            prc_origin: self.prc_origin()?,
            market: self.market()?,
            launch: self.launch()?,
            bf16: self.rate("bf16_fp16_dense_tflops")?,
            fp8: self.rate("fp8_dense_tflops")?,
            int8: self.rate("int8_dense_tops")?,
            fp4: self.rate("fp4_dense_tflops")?,
            tpp_published: self.number("tpp_published")?,
            memory: self.number("mem_gb")?.map(|giga| Bytes(giga * 1e9)),
            memory_kind: self.text("mem_type").to_string(),
            memory_bandwidth: self.bandwidth("mem_bw_gbs")?,
            scale_up_link: self.text("scaleup_link").to_string(),
            scale_up: self.bandwidth("scaleup_gbs_per_direction")?,
            scale_up_total: self.bandwidth("scaleup_gbs_total_bidir")?,
            scale_up_chips: self.scale_up_chips()?,
            scale_out: gigabits.map(|giga| BytesPerSecond(giga * 1e9 / 8.0)),
            power: self.number("tdp_w")?.map(Watts),
            power_kind: self.text("tdp_kind").to_string(),
            die_mm2: self.number("die_mm2")?,
            die_note: self.text("die_note").to_string(),
            price: self.number("price_usd_at_release")?.map(Dollars),
            hourly: self.hourly()?,
            hourly_source: self.text("usd_per_hour_source").to_string(),
            gemm_bf16: self.share("matmul_efficiency_measured_bf16")?,
            gemm_fp8: self.share("matmul_efficiency_measured_fp8")?,
            source: self.text("source").to_string(),
            notes: self.text("notes").to_string(),
        })
    }
}
