//! `serve`: a model behind the OpenAI API, and its page.

use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use engine::{EngineConfig, Speculation};
use kernels::Cpu;
use model::{Config, Model};
use serde_json::json;
use serve::{Access, Machine, Options, Served};

use super::print_json;
use crate::default_model;
use crate::failure::{FAILURE, Failure, Outcome, RESOURCES};
use crate::folder::Folder;
use crate::generation::{BLOCK_SIZE, speaks_our_words};
use crate::memory;
use crate::plain::plain;
use crate::settings::Settings;
use crate::signals::Signals;
use crate::weights::WeightOptions;

/// Serve a model behind the OpenAI API, with a page to chat with it
///
/// The APIs of OpenAI (chat, completions, responses) and of Anthropic (messages), at /v1; a page at
/// /; Prometheus at /metrics. The same request with the same seed gives the same bytes, whatever
/// else the server does. Stops on SIGTERM and Ctrl-C, after the requests under way.
#[derive(Args)]
#[command(after_help = "Example:\n  bruchteil serve demo-out/grpo\n  curl \
http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\\n    -d \
'{\"messages\": [{\"role\": \"user\", \"content\": \"69 64 4 20\"}]}'")]
pub struct Serve {
    /// A Hugging Face model folder, the directory of a run, or a GGUF file [default: the demo's]
    model: Option<PathBuf>,
    /// Address to listen on; any but loopback needs --api-key or --no-auth
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// Tokens of prompt and completion together [default: what the model takes, at most 32768]
    #[arg(short = 'c', long, visible_alias = "max-model-len", value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    ctx_size: Option<u32>,
    /// Sequences computed at one time
    #[arg(
        long,
        visible_alias = "max-num-seqs",
        value_name = "N",
        default_value_t = 64
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    parallel: u32,
    /// Sequences that may wait; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_queue: u32,
    /// Tokens that the cache holds, for all sequences [default: as memory allows]
    #[arg(long, value_name = "N")]
    cache_tokens: Option<usize>,
    /// A key that clients must send; may be given several times
    #[arg(long, value_name = "KEY")]
    api_key: Vec<String>,
    /// A file with such a key on each line, which other users' `ps` does not show
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Serve beyond loopback without a key
    #[arg(long, conflicts_with_all = ["api_key", "api_key_file"])]
    no_auth: bool,
    /// Names of the model, such as a,b; answers have the first [default: its folder's name]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    served_model_name: Vec<String>,
    /// A host name under which browsers reach the server, beside addresses and localhost
    #[arg(long, value_name = "NAME")]
    allowed_host: Vec<String>,
    /// Another page's origin that may use the server from a browser, such as https://a.example
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// The longest a request may take, in seconds
    #[arg(long, value_name = "S", default_value_t = 3600)]
    request_timeout: u32,
    /// How long requests may go on after SIGTERM, in seconds
    #[arg(long, value_name = "S", default_value_t = 30)]
    drain_timeout: u32,
    /// A line on standard error for every response: method, path, status, time to its beginning
    #[arg(long)]
    log_requests: bool,
    /// Compute prompts anew each time instead of keeping what they have in common
    #[arg(long)]
    no_prefix_cache: bool,
    /// Tokens guessed ahead from the text so far, while few sequences run; 0 for none. Speed alone
    #[arg(long, value_name = "N", default_value_t = 4)]
    draft_tokens: usize,
    #[command(flatten)]
    weights: WeightOptions,
}

const LARGEST_CONTEXT: usize = 32_768;
/// Sequences run together above which a guess costs more than it gains.
const DRAFT_SEQUENCES: usize = 4;
/// Of the memory that is available, what the cache takes at most.
const CACHE_SHARE: u64 = 2;
/// Puzzles on the page, where the model knows our words.
const PUZZLES: [&str; 3] = ["69 64 4 20", "59 25 6 78", "12 5 3 45"];

impl Serve {
    pub fn run(&self, settings: &Settings) -> Outcome {
        let signals = Signals::listen()?;
        let access = self.access()?;
        let listener = self.listen(&access)?;
        let path = match &self.model {
            Some(path) => path.clone(),
            None => default_model::newest_of_the_demo()?,
        };
        let mut folder = Folder::open(&path)?;
        let backend = settings.backend();
        let numerics = settings.numerics();
        let mtp = self.draft_tokens > 0 && folder.config.num_nextn_predict_layers > 0;
        let weights = self.weights.clone().with_mtp(mtp);
        let model = weights.open(&mut folder, numerics, settings, &backend)?;
        let context = self.context(&folder);
        let machine = self.machine(model, backend, context, mtp)?;
        self.say_cache(&machine, settings);
        if folder.chat_template.is_none() {
            settings.ui().warn(format_args!(
                "{}: there is no chat template, so only /v1/completions answers",
                folder.path.display()
            ));
        }
        let template_path = folder.template_path.clone();
        let served = self.served(folder, context, settings)?;
        let options = Options {
            access,
            places: self.parallel as usize + self.max_queue as usize,
            request_time: Duration::from_secs(u64::from(self.request_timeout)),
            drain_time: Duration::from_secs(u64::from(self.drain_timeout)),
            log_requests: self.log_requests,
        };
        let ui = settings.ui();
        let log: serve::Log = Arc::new(move |line: &str| ui.say(plain(line)));
        let name = served.names[0].clone();
        let ready = |address: SocketAddr| self.say(address, &name, settings);
        let stop = || signals.received().is_some();
        serve::serve(listener, machine, served, options, log, ready, stop).map_err(|error| {
            match error {
                serve::Error::Template(error) => Failure::text(&template_path, error),
                error => Failure::new(FAILURE, error, "start it again"),
            }
        })
    }

    /// What memory will hold when the server has been busy: the cache is kept.
    fn say_cache(&self, machine: &Machine, settings: &Settings) {
        let sizes = machine.engine;
        let tokens = sizes.num_blocks * sizes.block_size;
        let one = block_bytes(&machine.model.config, sizes.speculation.mtp);
        let bytes = one * sizes.num_blocks as u64;
        settings.ui().say(format_args!(
            "cache: {tokens} tokens, {} once it is full (--cache-tokens)",
            memory::shown(bytes)
        ));
    }

    /// Where the server is, for people or for programs.
    fn say(&self, address: SocketAddr, name: &str, settings: &Settings) {
        let url = format!("http://{address}");
        if settings.json {
            // Whoever reads this may have gone; the server goes on.
            let _ = print_json(&json!({"url": url, "model": name}));
        } else {
            settings.ui().say(format_args!(
                "serving {} at {url} (the page) and {url}/v1 (the API); Ctrl-C stops it",
                plain(name)
            ));
        }
    }

    fn access(&self) -> Result<Access, Failure> {
        let mut api_keys = self.api_key.clone();
        if let Some(path) = &self.api_key_file {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Failure::input(path, error, "give a readable file of keys"))?;
            api_keys.extend(text.lines().map(str::trim).map(str::to_string));
        }
        api_keys.retain(|key| !key.is_empty());
        let asked = !self.api_key.is_empty() || self.api_key_file.is_some();
        if asked && api_keys.is_empty() {
            return Err(Failure::usage(
                "the API key is empty",
                "give one that is not",
            ));
        }
        Ok(Access {
            api_keys,
            allowed_hosts: self.allowed_host.clone(),
            cors_origins: self.cors_origin.clone(),
        })
    }

    /// The socket, before anything is loaded: a port in use should not cost a minute.
    fn listen(&self, access: &Access) -> Result<TcpListener, Failure> {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let named = |error: &dyn std::fmt::Display| {
            let cause = format!("--host {}: {error}", plain(&self.host));
            Failure::usage(cause, "give an address of this machine, such as 127.0.0.1")
        };
        let addresses = (host, self.port).to_socket_addrs();
        let addresses: Vec<SocketAddr> = addresses.map_err(|error| named(&error))?.collect();
        let Some(&address) = addresses.first() else {
            return Err(named(&"it has no address"));
        };
        let is_loopback = match address.ip() {
            IpAddr::V6(ip) => ip
                .to_ipv4_mapped()
                .map_or(ip.is_loopback(), |ip| ip.is_loopback()),
            IpAddr::V4(ip) => ip.is_loopback(),
        };
        if !is_loopback && access.api_keys.is_empty() && !self.no_auth {
            let cause = format!("--host {address} can be reached from other machines");
            let advice = "add --api-key KEY, or --no-auth to serve everybody";
            return Err(Failure::usage(cause, advice));
        }
        TcpListener::bind(address).map_err(|error| {
            let cause = format!("cannot listen on {address}: {error}");
            Failure::new(
                FAILURE,
                cause,
                "choose another with --port, or 0 for a free one",
            )
        })
    }

    fn context(&self, folder: &Folder) -> usize {
        let most = folder.config.max_position_embeddings;
        match self.ctx_size {
            Some(wanted) => (wanted as usize).min(most),
            None => most.min(LARGEST_CONTEXT),
        }
    }

    fn machine(
        &self,
        model: Model,
        backend: Cpu,
        context: usize,
        mtp: bool,
    ) -> Result<Machine, Failure> {
        let parallel = self.parallel as usize;
        let one = context.div_ceil(BLOCK_SIZE);
        let block_bytes = block_bytes(&model.config, mtp);
        let all = parallel.saturating_mul(one);
        let num_blocks = match (self.cache_tokens, memory::available()) {
            (Some(tokens), _) => tokens.div_ceil(BLOCK_SIZE).max(1),
            (None, Some(available)) => {
                let room = available / CACHE_SHARE / block_bytes.max(1);
                all.min(usize::try_from(room).unwrap_or(usize::MAX))
            }
            (None, None) => all,
        };
        if num_blocks < one {
            let cause = format!(
                "a cache of {context} tokens needs {} of memory, and there is room for {} tokens",
                memory::shown(block_bytes.saturating_mul(one as u64)),
                num_blocks * BLOCK_SIZE
            );
            let advice = match self.cache_tokens {
                Some(_) => "give more --cache-tokens, or a smaller --ctx-size",
                None => "ask for a smaller context with --ctx-size",
            };
            return Err(Failure::new(RESOURCES, cause, advice));
        }
        let engine = EngineConfig {
            max_num_seqs: parallel,
            max_num_batched_tokens: parallel.max(512),
            block_size: BLOCK_SIZE,
            num_blocks,
            prefix_caching: !self.no_prefix_cache,
            speculation: Speculation {
                prompt_lookup: self.draft_tokens,
                mtp,
                max_num_seqs: DRAFT_SEQUENCES,
            },
        };
        Ok(Machine {
            model,
            backend,
            engine,
        })
    }

    fn served(
        &self,
        folder: Folder,
        context: usize,
        settings: &Settings,
    ) -> Result<Served, Failure> {
        let own_name = || {
            let path = std::fs::canonicalize(&folder.path).unwrap_or_else(|_| folder.path.clone());
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            vec![name.unwrap_or_else(|| "model".to_string())]
        };
        let names = match self.served_model_name.is_empty() {
            true => own_name(),
            false => self.served_model_name.clone(),
        };
        let tokenizer = folder.tokenizer()?.clone();
        let examples = match speaks_our_words(&tokenizer) {
            true => PUZZLES.map(str::to_string).to_vec(),
            false => Vec::new(),
        };
        Ok(Served {
            names,
            bos_token: folder.special_token("bos").to_string(),
            eos_token: folder.special_token("eos").to_string(),
            first_token_id: folder.first_token_id,
            stop_token_ids: folder.stop_token_ids,
            chat_template: folder.chat_template,
            vocab_size: folder.config.vocab_size,
            max_model_len: context,
            tokenizer,
            examples,
            now: Some(now),
            base_seed: settings.seed.unwrap_or_else(|| now().unsigned_abs()),
        })
    }
}

/// Of one block of the cache; multi-token prediction has a layer of its own.
fn block_bytes(config: &Config, mtp: bool) -> u64 {
    let floats = config.cache_elements_per_token() * BLOCK_SIZE;
    4 * (floats + usize::from(mtp) * floats / config.num_hidden_layers) as u64
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs().cast_signed())
}
