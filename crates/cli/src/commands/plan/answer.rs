//! A plan with what was asked, and its JSON.

use plan::chip::Chip;
use plan::date::Date;
use plan::export::{self, Classification, Verdict, classify};
use plan::stages::WholeRun;
use plan::training::{Plan, Request};
use serde::Serialize;

use super::explain::{self, Explanation};

/// Everything that is shown, in whatever form.
pub struct Answer {
    pub request: Request,
    pub plan: Plan,
    /// All stages, where there are several.
    pub run: Option<WholeRun>,
    /// Where the model's sizes are written.
    pub source: String,
    /// What nobody said, and what was taken instead.
    pub assumptions: Vec<String>,
    /// The day whose rules of export count.
    pub date: Date,
}

#[derive(Serialize)]
pub struct Json<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<&'a WholeRun>,
    model_source: &'a str,
    software: plan::job::Software,
    assumptions: &'a [String],
    export: Export,
    #[serde(skip_serializing_if = "Option::is_none")]
    explanations: Option<Vec<Explanation>>,
}

#[derive(Serialize)]
struct Export {
    as_of: Date,
    class: plan::export::Class,
    /// `None` where the chip's launch is not known.
    launched_later: Option<bool>,
    disclaimer: &'static str,
}

impl Answer {
    pub fn json(&self, explained: bool) -> Json<'_> {
        Json {
            plan: &self.plan,
            run: self.run.as_ref(),
            model_source: &self.source,
            software: self.request.software.unwrap_or_default(),
            assumptions: &self.assumptions,
            export: Export {
                as_of: self.date,
                class: self.export().class,
                launched_later: self
                    .chip()
                    .launch
                    .map(|launch| launch.first_day() > self.day()),
                disclaimer: export::DISCLAIMER,
            },
            explanations: explained.then(|| explain::all(self)),
        }
    }

    pub fn chip(&self) -> &Chip {
        &self.request.chip
    }

    /// The last day that the date asked for may mean.
    fn day(&self) -> Date {
        self.date.last_day()
    }

    pub fn export(&self) -> Classification {
        classify(self.chip(), self.date)
    }

    /// The chip's class on that day, and whether there was such a chip.
    pub fn export_words(&self) -> String {
        let export = self.export();
        let class = export.class;
        let letter = match export.bandwidth_letter {
            Some(Verdict::Yes) => "; within the letter of April 2025",
            _ => "",
        };
        let launch = self.chip().launch;
        let later = launch.filter(|launch| launch.first_day() > self.day());
        let later = later.map(|launch| {
            let name = &self.chip().name;
            format!("; {name} was launched {launch}, after that date")
        });
        format!(
            "{class}{letter} as of {}, {}{}",
            self.date,
            export::DISCLAIMER,
            later.unwrap_or_default()
        )
    }

    /// By how much a layout that was asked for does not fit.
    pub fn too_large(&self) -> String {
        let plan = &self.plan;
        format!(
            "this layout needs {:.1} GB on a chip, {:.1} GB more than the {:.1} GB that can be \
             used; leave --layout out to have one searched that fits",
            plan.memory_bytes_per_chip / 1e9,
            (plan.memory_bytes_per_chip - plan.memory_usable_bytes) / 1e9,
            plan.memory_usable_bytes / 1e9,
        )
    }

    pub fn with_mtp(&self) -> bool {
        self.request.with_mtp && self.request.shape.mtp_modules > 0
    }
}
