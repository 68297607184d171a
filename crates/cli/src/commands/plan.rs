//! `plan`: what a training run takes, of any model on any chips.

mod answer;
mod explain;
mod list;
mod page;
mod pictures;
mod serving;
mod table;
mod validate;
mod words;

use std::path::{Path, PathBuf};

use clap::Args;
use plan::campaigns::CAMPAIGN_SPREAD;
use plan::chip::{self, Chip};
use plan::date::Date;
use plan::interval::Interval;
use plan::layout::Layout;
use plan::measured;
use plan::quantity::{DollarsPerChipSecond, Tokens};
use plan::stages::{Further, whole_run};
use plan::training::{Request, plan, usual_batch};

use super::{print, print_json};
use crate::failure::{Failure, Outcome};
use crate::folder::Folder;
use crate::model_choice::{self, Chosen};
use crate::numbers::{parse, parse_positive, parse_whole};
use crate::settings::Settings;
use answer::Answer;

/// Tokens of a sequence where nobody says, if the model takes as many.
const USUAL_SEQ_LEN: u64 = 4096;

/// What a training run or a service takes: layout, time by part, memory, days, energy, cost
///
/// Without --layout every layout is tried and the fastest that fits is taken. What is uncertain is
/// shown as "mid (low to high)"; --explain says where each number comes from. --precision is that
/// of the large products: bf16, fp8 or fp4.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  bruchteil plan deepseek-v3 --chips h800:2048 --tokens 14.8T \
    --batch-seqs 15360 --precision fp8\n  bruchteil plan ./config.json --chips h100:512 --tokens \
    2e12 --html plan.html\n  bruchteil plan deepseek-v3 --serve --chips h20:32\n  bruchteil plan \
    ./model --serve --chips here\n  bruchteil plan llama-3.1-405b --chips h100:16384 --tokens \
    15.6T --layout tp=8,pp=16\n  bruchteil plan --list\n  bruchteil plan --validate predicted.md"
)]
pub struct PlanCommand {
    /// A preset, a config.json, a Hugging Face folder, a GGUF file, or the TOML file of a run
    #[arg(value_name = "MODEL", required_unless_present_any = ["list", "validate"])]
    model: Option<String>,
    #[command(flatten)]
    recipe: Recipe,
    /// Tokens a second and dollars per million tokens of a service, not a training run; on this
    /// machine with --chips here
    #[arg(long, conflicts_with_all = ["list", "validate", "html", "tokens", "seq_len", "batch_seqs",
        "layout", "software", "no_mtp", "date", "stage", "rollouts"])]
    serve: bool,
    /// Also write a page with pictures, one file that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Say of every number by what formula and from what source it comes
    #[arg(long)]
    explain: bool,
    /// List the models that are known by name
    #[arg(long, conflicts_with_all = ["model", "validate"])]
    list: bool,
    /// Compare with published steps, each predicted without itself (about a minute): write
    /// FILE.md, and a picture beside it
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    validate: Option<PathBuf>,
    #[command(flatten)]
    serving: serving::ServingOptions,
}

/// The run that is asked about.
#[derive(Args)]
struct Recipe {
    /// Chips and how many, such as h800:2048; `bruchteil chips` lists all
    #[arg(long, value_name = "NAME:N", value_parser = place, required_unless_present_any = [
        "list", "validate", "serve",
    ])]
    chips: Option<Place>,
    /// Tokens of the whole run, such as 14.8e12 or 15T
    #[arg(long, value_name = "N", value_parser = parse, required_unless_present_any = [
        "list", "validate", "serve",
    ])]
    tokens: Option<f64>,
    /// Tokens of a sequence [default: 4096, or the longest that the model takes]
    #[arg(long, value_name = "N", value_parser = parse_whole)]
    seq_len: Option<u64>,
    /// Sequences of a step [default: 4 or 16 million tokens by the model's size, no
    /// less than one sequence for each chip]
    #[arg(long, value_name = "N", value_parser = parse_whole)]
    batch_seqs: Option<u64>,
    /// Taken as it is, such as tp=1,pp=16,ep=64,zero=1,schedule=dualpipe,recompute=selective;
    /// cp, chunks and mbs may be given too [default: the fastest that fits]
    #[arg(long, value_name = "FIELD=VALUE,...")]
    layout: Option<String>,
    /// Software whose habits published steps have shown, such as megatron-2022 or deepseek-v3
    /// [default: fused attention, exchanges hidden where the schedule allows, graphs; the
    /// intervals are then those of all softwares]
    #[arg(long, value_name = "NAME")]
    software: Option<String>,
    /// Leave out the modules of multi-token prediction that the model may have
    #[arg(long)]
    no_mtp: bool,
    /// A further stage behind the first, such as long contexts; may be given several times
    #[arg(long, value_name = "TOKENS:SEQ_LEN:BATCH", value_parser = stage)]
    stage: Vec<Further>,
    /// Reinforcement learning behind all stages: tokens that the model writes on the same chips
    /// and is then trained on, the length of an answer, and answers in a step
    #[arg(long, value_name = "TOKENS:LENGTH:BATCH", value_parser = rollouts)]
    rollouts: Option<Further>,
    /// What a chip costs, in dollars per hour [default: the catalogue's rents]
    #[arg(long, value_name = "USD", value_parser = price)]
    price: Option<f64>,
    /// The day whose rules of export count [default: that of the newest rule known]
    #[arg(long, value_name = "DATE")]
    date: Option<Date>,
}

impl PlanCommand {
    pub fn run(&self, settings: &Settings) -> Outcome {
        if self.list {
            return list::show(settings);
        }
        if let Some(path) = &self.validate {
            return validate::write(path, settings);
        }
        let model = self.model.as_deref().expect("clap asks for it");
        if self.serve {
            return self.service(model, settings);
        }
        if let Some(option) = self.serving.given() {
            let cause = format!("{option} is an option of services");
            return Err(Failure::usage(cause, "add --serve, or leave it out"));
        }
        let answer = self.recipe.answer(model_choice::choose(model)?, settings)?;
        if !answer.plan.fits {
            settings.ui().warn(answer.too_large());
        }
        if let Some(path) = &self.html {
            if path
                .canonicalize()
                .is_ok_and(|html| Path::new(model).canonicalize().is_ok_and(|m| m == html))
            {
                let cause = format!("--html {} is the model that was read", path.display());
                return Err(Failure::usage(cause, "give the page a name of its own"));
            }
            model::write_atomic(path, page::html(&answer).as_bytes())?;
            settings.ui().say(format_args!("wrote {}", path.display()));
        }
        match (settings.json, self.explain) {
            (true, explain) => print_json(&answer.json(explain)),
            (false, true) => print(&(table::text(&answer) + "\n" + &explain::text(&answer))),
            (false, false) => print(&table::text(&answer)),
        }
    }
}

impl PlanCommand {
    fn service(&self, model: &str, settings: &Settings) -> Outcome {
        let cluster = match &self.recipe.chips {
            Some(Place::Here) => {
                let folder = Folder::open(Path::new(model))?;
                return serving::run_here(&folder.config, model, &self.serving, settings);
            }
            Some(Place::Cluster(name, chips)) => Some((chip::find(name)?, *chips)),
            None => None,
        };
        let chosen = model_choice::choose(model)?;
        let asked = serving::Asked {
            cluster,
            price: self.recipe.price,
            explain: self.explain,
            options: &self.serving,
        };
        serving::run(&chosen.shape, &chosen.title, &asked, settings)
    }
}

/// Where a model runs.
#[derive(Clone, Debug)]
enum Place {
    /// This machine, which is measured; services only.
    Here,
    Cluster(String, u64),
}

impl Recipe {
    fn answer(&self, chosen: Chosen, settings: &Settings) -> Result<Answer, Failure> {
        let Some(Place::Cluster(name, chips)) = &self.chips else {
            let advice = "name chips and their number, such as h100:8, or add --serve";
            return Err(Failure::usage("--chips here is for --serve", advice));
        };
        let chip = chip::find(name)?;
        let request = self.request(&chosen, chip, *chips, settings)?;
        let planned = plan(&request)?;
        let further: Vec<Further> = self.stage.iter().chain(&self.rollouts).copied().collect();
        Ok(Answer {
            run: whole_run(&request, &planned, &further)?,
            assumptions: self.assumptions(&request, settings),
            date: self.date.unwrap_or_else(plan::export::newest),
            plan: planned,
            source: chosen.source,
            request,
        })
    }

    fn request(
        &self,
        chosen: &Chosen,
        chip: &Chip,
        chips: u64,
        settings: &Settings,
    ) -> Result<Request, Failure> {
        let shape = chosen.shape.clone();
        let longest = shape.max_position_embeddings.unwrap_or(USUAL_SEQ_LEN);
        let seq_len = self.seq_len.unwrap_or(longest.min(USUAL_SEQ_LEN));
        let price = |usd: f64| Interval::exact(DollarsPerChipSecond::from_hourly(usd));
        Ok(Request {
            title: chosen.title.clone(),
            chip: chip.clone(),
            chips,
            tokens: Tokens(self.tokens.expect("clap asks for it")),
            seq_len,
            batch_seqs: self
                .batch_seqs
                .unwrap_or_else(|| usual_batch(&shape, seq_len, chips)),
            precision: settings.planned_precision()?,
            with_mtp: !self.no_mtp,
            layout: self
                .layout
                .as_deref()
                .map(str::parse::<Layout>)
                .transpose()?,
            software: self
                .software
                .as_deref()
                .map(measured::software)
                .transpose()?,
            price: self.price.map(price),
            shape,
        })
    }

    /// What nobody said, and what was taken instead.
    fn assumptions(&self, request: &Request, settings: &Settings) -> Vec<String> {
        let mut taken = Vec::new();
        let mut say = |sentence: String| taken.push(sentence);
        if settings.precision.is_none() {
            say("precision bf16 (--precision)".to_string());
        }
        if self.seq_len.is_none() {
            say(format!(
                "sequences of {} tokens (--seq-len)",
                request.seq_len
            ));
        }
        if self.batch_seqs.is_none() {
            let tokens = (request.batch_seqs * request.seq_len) as f64 / 1e6;
            say(format!(
                "a step of {} sequences, {tokens:.1} million tokens, as is usual for this \
                 model and number of chips (--batch-seqs)",
                request.batch_seqs
            ));
        }
        if self.software.is_none() {
            say("software unknown, so with wide intervals (--software)".to_string());
        }
        if request.with_mtp && request.shape.mtp_modules > 0 {
            say("multi-token prediction trained too (--no-mtp)".to_string());
        }
        say(words::price(request));
        let longest = request.shape.max_position_embeddings;
        if let Some(longest) = longest.filter(|&longest| longest < request.seq_len) {
            say(format!(
                "sequences longer than the model's {longest} positions"
            ));
        }
        say("power of chips, hosts and network, without the building's cooling".to_string());
        let Interval { low, mid, high } = CAMPAIGN_SPREAD;
        say(format!(
            "no side runs: published campaigns took {low} to {high} times their steady hours, \
             half of them more than {mid}"
        ));
        taken
    }
}

fn price(text: &str) -> Result<f64, String> {
    match parse_positive(text)? {
        usd if usd <= 1e5 => Ok(usd),
        _ => Err("no chip costs so much an hour".to_string()),
    }
}

fn stage(text: &str) -> Result<Further, String> {
    let wrong = "write tokens, their sequences' length and sequences in a step, as 63B:32768:1920";
    let parts: Vec<&str> = text.split(':').collect();
    let [tokens, seq_len, batch_seqs] = parts.as_slice() else {
        return Err(wrong.to_string());
    };
    Ok(Further {
        tokens: Tokens(parse_positive(tokens)?),
        seq_len: parse_whole(seq_len)?,
        batch_seqs: parse_whole(batch_seqs)?,
        rollouts: false,
    })
}

fn rollouts(text: &str) -> Result<Further, String> {
    let rollouts = true;
    stage(text).map(|stage| Further { rollouts, ..stage })
}

fn place(text: &str) -> Result<Place, String> {
    if text == "here" {
        return Ok(Place::Here);
    }
    let (name, count) = text
        .rsplit_once(':')
        .ok_or("write a chip and how many, as h800:2048")?;
    Ok(Place::Cluster(name.trim().to_string(), parse_whole(count)?))
}
