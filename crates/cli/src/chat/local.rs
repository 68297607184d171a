//! A conversation with a model here.

use engine::{
    Engine, EngineConfig, FinishReason, Output, Request, SequenceId, Speculation, Submission,
};
use kernels::Cpu;
use model::Model;
use text::{Piece, ReasoningSplitter, StreamDecoder, Tokenizer};

use super::{Question, STOPPED};
use crate::failure::{Failure, Outcome};
use crate::folder::Folder;
use crate::generation::{self, BLOCK_SIZE};
use crate::progress::Ui;
use crate::remote::{End, Usage};
use crate::settings::Settings;
use crate::weights::WeightOptions;

/// The context where the user asks for none: models that take more would fill the memory.
const CONTEXT: usize = 32_768;

pub struct Local {
    folder: Folder,
    name: String,
    model: Model,
    backend: Cpu,
    engine: Engine,
    /// Tokens of a conversation at most.
    context: usize,
    ui: Ui,
}

impl Local {
    /// # Errors
    /// The folder lacks something, or memory does not hold the model or the conversation.
    pub fn open(
        mut folder: Folder,
        weights: &WeightOptions,
        context: Option<usize>,
        settings: &Settings,
    ) -> Result<Local, Failure> {
        folder.tokenizer()?;
        let backend = settings.backend();
        let model = weights.open(&mut folder, settings.numerics(), settings, &backend)?;
        let most = folder.config.max_position_embeddings;
        let context = context.unwrap_or(CONTEXT).min(most);
        let num_blocks = generation::blocks(&model, 1, context);
        let sizes = EngineConfig {
            max_num_seqs: 1,
            max_num_batched_tokens: context.clamp(1, 1024),
            block_size: BLOCK_SIZE,
            num_blocks: num_blocks.map_err(|failure| failure.advise("lower --ctx-size"))?,
            prefix_caching: true,
            speculation: Speculation::default(),
        };
        Ok(Local {
            engine: Engine::new(&model.config, sizes)?,
            name: folder.path.display().to_string(),
            folder,
            model,
            backend,
            context,
            ui: settings.ui(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// As [`super::Partner::answer`].
    pub fn answer(
        &mut self,
        question: &Question,
        stop: &dyn Fn() -> bool,
        hear: &mut dyn FnMut(Piece) -> Outcome,
    ) -> Result<End, Failure> {
        let text = self.folder.conversation_prompt(question.messages)?;
        let tokenizer = self.folder.tokenizer()?;
        let prompt = tokenizer.encode(&text)?;
        if prompt.is_empty() {
            return Err(self.folder.empty_prompt());
        }
        generation::warn_of_unknown_words(Some(tokenizer), self.ui, &prompt);
        let room = self.context.saturating_sub(prompt.len());
        if room == 0 {
            return Err(too_long(prompt.len(), self.context));
        }
        let params = question
            .knobs
            .params(room, &self.folder.stop_token_ids, question.seed);
        let mut heard = Heard::new(tokenizer, text::opens_thinking(&text), prompt.len());
        // The server numbers the sequences of a request from 0 too.
        let request = Request {
            sequence: 0,
            prompt,
            params,
        };
        let id = self.engine.submit(Submission::from(request))?;
        let Local {
            engine,
            model,
            backend,
            ..
        } = self;
        let outcome = listen(
            || engine.advance(model, backend),
            id,
            &mut heard,
            stop,
            hear,
        );
        // It is there no more where it is done.
        engine.cancel(id);
        let finish_reason = outcome?;
        heard.end(finish_reason, hear)
    }
}

/// Computes until the sequence is done, for the reason that is given back, or the user stops it.
fn listen(
    mut advance: impl FnMut() -> Vec<Output>,
    id: SequenceId,
    heard: &mut Heard,
    stop: &dyn Fn() -> bool,
    hear: &mut dyn FnMut(Piece) -> Outcome,
) -> Result<&'static str, Failure> {
    while !stop() {
        for output in advance() {
            assert_eq!(output.id, id, "the engine has one sequence");
            heard.take(&output, hear)?;
            match output.finish_reason {
                Some(FinishReason::Stop) => return Ok("stop"),
                Some(FinishReason::Length) => return Ok("length"),
                None => {}
            }
        }
    }
    Ok(STOPPED)
}

/// From tokens to pieces.
struct Heard<'a> {
    decoder: StreamDecoder<&'a Tokenizer>,
    splitter: ReasoningSplitter,
    usage: Usage,
}

impl<'a> Heard<'a> {
    fn new(tokenizer: &'a Tokenizer, primed: bool, prompt_tokens: usize) -> Heard<'a> {
        Heard {
            decoder: tokenizer.stream(true),
            splitter: ReasoningSplitter::new(primed),
            usage: Usage {
                prompt_tokens: prompt_tokens as u64,
                cached_tokens: Some(0),
                completion_tokens: 0,
            },
        }
    }

    fn take(&mut self, output: &Output, hear: &mut dyn FnMut(Piece) -> Outcome) -> Outcome {
        if let Some(prompt) = &output.prompt {
            self.usage.cached_tokens = Some(prompt.cached_tokens as u64);
        }
        self.usage.completion_tokens += output.tokens.len() as u64;
        for token in &output.tokens {
            let text = self.decoder.push(token.token_id)?;
            hear(self.splitter.push(&text))?;
        }
        Ok(())
    }

    /// What was held back.
    fn end(
        mut self,
        finish_reason: &str,
        hear: &mut dyn FnMut(Piece) -> Outcome,
    ) -> Result<End, Failure> {
        let text = self.decoder.finish()?;
        hear(self.splitter.push(&text))?;
        hear(self.splitter.finish())?;
        Ok(End {
            finish_reason: finish_reason.to_string(),
            usage: Some(self.usage),
        })
    }
}

fn too_long(prompt: usize, context: usize) -> Failure {
    let cause = format!(
        "the conversation has {prompt} tokens, and no more than {context} are held, answer included"
    );
    Failure::usage(
        cause,
        "begin another with /new, or give a larger --ctx-size",
    )
}
