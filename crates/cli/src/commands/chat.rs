//! `chat`: a conversation in the terminal.

use std::env;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;

use crate::chat::{Knobs, Local, Manner, Partner, Server, Session, whole_input};
use crate::default_model::newest_of_the_demo;
use crate::failure::{Failure, Outcome};
use crate::folder::Folder;
use crate::plain::plain;
use crate::remote::{Remote, RemoteOptions, URL_VARIABLE, is_url};
use crate::settings::Settings;
use crate::weights::WeightOptions;

/// Talk with a model, here or on a server
///
/// Without MODEL, the server that the environment variable OPENAI_BASE_URL names, else the newest
/// model of `bruchteil demo` in this folder. A message is a line; /help shows the commands. Where
/// standard input is no terminal, all of it is one message, or with --interactive each line is.
/// What is said is as reproducible as all else: /regenerate counts the seed up by one. With --json
/// each answer is one object: {"model", "thinking", "answer", "finish_reason", "seed",
/// "prompt_tokens", "cached_tokens", "completion_tokens"}.
#[derive(Args)]
#[command(
    after_help = "Example:\n  bruchteil chat demo-out/grpo\n  bruchteil chat \
http://127.0.0.1:8080 --prompt '69 64 4 20' --temperature 0"
)]
pub struct Chat {
    /// A model folder, a GGUF file, or the address of an OpenAI-compatible server
    model: Option<PathBuf>,
    /// Say this before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Say this, show the answer and end
    #[arg(long, value_name = "TEXT", conflicts_with = "interactive")]
    prompt: Option<String>,
    /// Take turns line by line, even where standard input is no terminal
    #[arg(long)]
    interactive: bool,
    /// Tokens of a conversation with a model here [default: what it takes, up to 32768]
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(2..))]
    ctx_size: Option<u32>,
    #[command(flatten)]
    knobs: Knobs,
    #[command(flatten)]
    remote: RemoteOptions,
    #[command(flatten)]
    weights: WeightOptions,
}

impl Chat {
    pub fn run(&self, settings: &Settings) -> Outcome {
        // Before a model is loaded for nothing.
        let message = match (&self.prompt, self.interactive) {
            (Some(text), _) => Some(text.clone()),
            (None, false) if !std::io::stdin().is_terminal() => Some(whole_input()?),
            _ => None,
        };
        let partner = self.partner(settings)?;
        let ui = settings.ui();
        let manner = Manner {
            json: settings.json,
            ui,
            no_color: env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()),
        };
        let name = plain(partner.name());
        let (system, knobs) = (self.system.as_deref(), self.knobs.clone());
        let seed = settings.seed.unwrap_or(0);
        let mut session = Session::new(partner, system, knobs, seed, manner)?;
        match message {
            Some(message) => session.single(message),
            None => {
                ui.say(format_args!(
                    "{name}: /help shows the commands, Ctrl-D ends"
                ));
                session.talk()
            }
        }
    }

    fn partner(&self, settings: &Settings) -> Result<Partner, Failure> {
        let ui = settings.ui();
        let url = match &self.model {
            Some(model) => is_url(model).then(|| model.to_string_lossy().into_owned()),
            None => env::var(URL_VARIABLE).ok().filter(|url| !url.is_empty()),
        };
        if let Some(url) = url {
            self.weights.none_given()?;
            if self.ctx_size.is_some() {
                let cause = "--ctx-size is for a model here, and a server has its own";
                return Err(Failure::usage(cause, "leave it out"));
            }
            let remote = Remote::new(&url, &self.remote, ui)?;
            let model = remote.model(self.remote.model_name.as_deref())?;
            return Ok(Partner::Server(Server::new(remote, model)));
        }
        self.remote.none_given()?;
        let model = match &self.model {
            Some(model) => model.clone(),
            None => newest_of_the_demo()?,
        };
        let context = self.ctx_size.map(|tokens| tokens as usize);
        let folder = Folder::open(&model)?;
        let local = Local::open(folder, &self.weights, context, settings)?;
        Ok(Partner::Local(Box::new(local)))
    }
}
