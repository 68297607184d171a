//! An answer's text and its calls, told apart while it comes.

use super::object::{CallObject, Event};
use super::{AnswerPiece, DEEPSEEK_CALL_BEGIN, DEEPSEEK_CALL_END, DEEPSEEK_SEP, HERMES_CLOSE};
use super::{DEEPSEEK_CALLS_BEGIN, DEEPSEEK_CALLS_END, HERMES_OPEN, LLAMA_TAG, ToolFormat};

/// So many bytes at most wait for their meaning; beyond, they are text, or arguments as they are.
const MAX_HELD: usize = 1 << 20;
/// A longer head of a DeepSeek call is not one.
const MAX_HEAD: usize = 1 << 10;

/// Splits an answer (after its thinking) that comes in chunks into text and calls of tools. However
/// it is cut, the same text and the same calls come out.
///
/// - White space beside markers is dropped, as are the markers of DeepSeek around all calls.
/// - A call begins once its name is known, and its arguments follow as they are written. A whole
///   call without any has the arguments `{}`.
/// - What looks like a call at first and then is none (no JSON object, no name, more than 1 MiB
///   before its name) is text, markers and all: nothing that the model wrote is lost.
/// - A call that breaks off after its name keeps the arguments so far, which then may be no JSON;
///   what stands between the break and the end marker is dropped.
/// - Llama's format has no end marker, and may have none in front: an answer that begins with an
///   object is a call only if it names one of the known tools.
#[derive(Clone, Debug)]
pub struct ToolCallSplitter {
    format: ToolFormat,
    names: Vec<String>,
    place: Place,
    /// The text since the last white space or marker that may yet be dropped.
    held: String,
    /// What may be the beginning of a marker.
    pending: String,
    /// White space is dropped here, because a marker was in front.
    after_marker: bool,
    calls: usize,
    /// Inside a string of DeepSeek's arguments; with the last character a backslash.
    in_string: bool,
    escaped: bool,
    pieces: Vec<AnswerPiece>,
}

#[derive(Clone, Debug)]
enum Place {
    Text,
    /// DeepSeek: in front of the separator.
    Head {
        head: String,
    },
    /// DeepSeek-V3: between the separator and the arguments; then its name and a fence.
    Name {
        name: String,
    },
    /// DeepSeek: in the arguments; `held` is what may be white space or a fence at their end.
    Arguments {
        index: usize,
        begun: bool,
    },
    /// Hermes and Llama: in the object of a call.
    Object(Object),
    /// After a call: white space, its end marker, or what joins the next one to it.
    After,
    /// After a call that broke off: everything up to the next marker is dropped.
    Skip,
}

#[derive(Clone, Debug)]
struct Object {
    scan: CallObject,
    /// The call's place, once it has begun.
    index: Option<usize>,
    /// Arguments that came before the name.
    early: String,
    /// Only a known name makes a call of it.
    bare: bool,
}

impl Object {
    fn place(bare: bool) -> Place {
        Place::Object(Object {
            scan: CallObject::new(),
            index: None,
            early: String::new(),
            bare,
        })
    }
}

impl ToolCallSplitter {
    /// `names`: the tools that the request offers.
    pub fn new(format: ToolFormat, names: Vec<String>) -> ToolCallSplitter {
        ToolCallSplitter {
            format,
            names,
            place: match format {
                ToolFormat::Llama => Object::place(true),
                _ => Place::Text,
            },
            held: String::new(),
            pending: String::new(),
            after_marker: false,
            calls: 0,
            in_string: false,
            escaped: false,
            pieces: Vec::new(),
        }
    }

    /// How many calls have begun.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// What became certain with a chunk: never an empty text or fragment.
    pub fn push(&mut self, chunk: &str) -> Vec<AnswerPiece> {
        for character in chunk.chars() {
            self.character(character);
        }
        std::mem::take(&mut self.pieces)
    }

    /// What is still held back, after the last chunk.
    pub fn finish(mut self) -> Vec<AnswerPiece> {
        match std::mem::replace(&mut self.place, Place::Text) {
            // What is left of an end marker.
            Place::After | Place::Skip => {}
            Place::Arguments { index, begun } => self.end_arguments(index, begun, false),
            Place::Object(Object { index: Some(_), .. }) => {}
            _ => {
                let held = std::mem::take(&mut self.held) + &self.pending;
                self.text(&held);
            }
        }
        self.pieces
    }

    /// Collects what may be a marker; everything else goes on by itself.
    fn character(&mut self, character: char) {
        self.pending.push(character);
        while !self.pending.is_empty() {
            if !self.takes_all() {
                let markers = self.format.markers();
                if let Some(&marker) = markers.iter().find(|marker| **marker == self.pending) {
                    self.pending.clear();
                    return self.marker(marker);
                }
                if markers
                    .iter()
                    .any(|marker| marker.starts_with(&self.pending))
                {
                    return;
                }
            }
            let first = self.pending.remove(0);
            self.plain(first);
        }
    }

    /// Whether markers have no meaning here: inside an object or a string.
    fn takes_all(&self) -> bool {
        match &self.place {
            Place::Object(object) => !object.scan.is_fresh(),
            Place::Arguments { .. } => self.in_string,
            _ => false,
        }
    }

    /// A character that is no marker's.
    fn plain(&mut self, character: char) {
        match &mut self.place {
            Place::Text => self.of_text(character),
            Place::Head { head } => {
                head.push(character);
                self.held.push(character);
                if head.len() > MAX_HEAD {
                    self.give_up();
                }
            }
            Place::Name { .. } => self.of_name(character),
            Place::Arguments { .. } => self.of_arguments(character),
            Place::Object(_) => self.of_object(character),
            Place::After => self.after(character),
            Place::Skip => {}
        }
    }

    fn of_text(&mut self, character: char) {
        if character.is_whitespace() {
            if !self.after_marker {
                self.held.push(character);
            }
            if self.held.len() > MAX_HELD {
                self.give_up();
            }
        } else {
            self.after_marker = false;
            self.held.push(character);
            self.give_up();
        }
    }

    /// What is held is text.
    fn give_up(&mut self) {
        self.place = Place::Text;
        self.after_marker = false;
        let held = std::mem::take(&mut self.held);
        self.text(&held);
    }

    fn marker(&mut self, marker: &'static str) {
        match marker {
            DEEPSEEK_CALLS_BEGIN | DEEPSEEK_CALLS_END => {
                self.leave();
                self.held.clear();
                self.after_marker = true;
            }
            DEEPSEEK_CALL_BEGIN => {
                self.leave();
                let head = String::new();
                self.begin(marker, Place::Head { head });
            }
            DEEPSEEK_SEP => self.separator(),
            DEEPSEEK_CALL_END => self.call_end(),
            HERMES_CLOSE => match self.place {
                Place::After | Place::Skip => {
                    self.place = Place::Text;
                    self.after_marker = true;
                }
                _ => self.as_text(marker),
            },
            HERMES_OPEN | LLAMA_TAG => {
                self.leave();
                self.begin(marker, Object::place(false));
            }
            _ => unreachable!("one of the format's markers"),
        }
    }

    /// A marker where it has no meaning.
    fn as_text(&mut self, marker: &str) {
        self.held.push_str(marker);
        match self.place {
            Place::Skip => self.held.clear(),
            Place::Arguments { index, .. } => {
                let held = std::mem::take(&mut self.held);
                self.fragment(index, &held);
            }
            _ => self.give_up(),
        }
    }

    /// A marker comes that only makes sense outside of a call: ends the present one.
    fn leave(&mut self) {
        match std::mem::replace(&mut self.place, Place::Text) {
            Place::Arguments { index, begun } => self.end_arguments(index, begun, true),
            // White space, which stays in front of what begins now.
            Place::Text | Place::After | Place::Skip => {}
            Place::Object(object) if object.bare => {}
            Place::Head { .. } | Place::Name { .. } | Place::Object(_) => self.give_up(),
        }
    }

    fn begin(&mut self, marker: &str, place: Place) {
        self.held.push_str(marker);
        self.place = place;
    }

    fn call_begins(&mut self, name: String) -> usize {
        let index = self.calls;
        self.calls += 1;
        (self.in_string, self.escaped) = (false, false);
        self.held.clear();
        self.pieces.push(AnswerPiece::CallBegins { index, name });
        index
    }

    fn separator(&mut self) {
        let Place::Head { head } = &self.place else {
            return self.as_text(DEEPSEEK_SEP);
        };
        let head = head.trim().to_string();
        if head == "function" {
            self.begin(
                DEEPSEEK_SEP,
                Place::Name {
                    name: String::new(),
                },
            );
        } else if head.is_empty() {
            self.as_text(DEEPSEEK_SEP);
        } else {
            let index = self.call_begins(head);
            self.place = Place::Arguments {
                index,
                begun: false,
            };
        }
    }

    fn call_end(&mut self) {
        match std::mem::replace(&mut self.place, Place::Text) {
            Place::Arguments { index, begun } => self.end_arguments(index, begun, true),
            // V3's form of a call without arguments.
            Place::Name { name } if !without_fence(&name).is_empty() => {
                let index = self.call_begins(without_fence(&name).to_string());
                self.end_arguments(index, false, true);
            }
            place => {
                self.place = place;
                return self.as_text(DEEPSEEK_CALL_END);
            }
        }
        self.after_marker = true;
    }

    /// V3's head ends where its arguments begin; an object at once is V3.1's form, of a tool that
    /// is called `function`.
    fn of_name(&mut self, character: char) {
        let Place::Name { name } = &mut self.place else {
            return;
        };
        if character == '{' {
            let name = match without_fence(name) {
                "" => "function".to_string(),
                name => name.to_string(),
            };
            let index = self.call_begins(name);
            self.place = Place::Arguments { index, begun: true };
            return self.fragment(index, "{");
        }
        name.push(character);
        let too_long = name.len() > MAX_HEAD;
        self.held.push(character);
        if too_long {
            self.give_up();
        }
    }

    fn of_arguments(&mut self, character: char) {
        let Place::Arguments { index, begun } = &mut self.place else {
            return;
        };
        let index = *index;
        // No string has a line's end in it, so one that is never closed ends there at the latest.
        (self.in_string, self.escaped) = match (self.in_string, self.escaped, character) {
            (true, true, _) => (true, false),
            (true, false, '\\') => (true, true),
            (true, false, '"' | '\n') => (false, false),
            (inside, _, character) => (inside || character == '"', false),
        };
        let may_be_end = character.is_whitespace() || character == '`';
        if may_be_end && (*begun || !character.is_whitespace()) {
            self.held.push(character);
        }
        if !may_be_end {
            *begun = true;
        }
        if !may_be_end || self.held.len() > MAX_HELD {
            let held = std::mem::take(&mut self.held);
            self.fragment(index, &held);
        }
        if !may_be_end {
            self.fragment(index, character.encode_utf8(&mut [0; 4]));
        }
    }

    /// `whole`: the end was written.
    fn end_arguments(&mut self, index: usize, begun: bool, whole: bool) {
        let held = std::mem::take(&mut self.held);
        let end = held.trim_end();
        let rest = end.strip_suffix("```").unwrap_or(end).trim_end();
        self.fragment(index, rest);
        if whole && !begun && rest.is_empty() {
            self.fragment(index, "{}");
        }
    }

    fn of_object(&mut self, character: char) {
        let Place::Object(object) = &mut self.place else {
            return;
        };
        let event = object.scan.push(character);
        if object.index.is_none() {
            self.held.push(character);
        }
        match event {
            Event::Name(name) => self.named(name),
            Event::Argument => match object.index {
                Some(index) => self.fragment(index, character.encode_utf8(&mut [0; 4])),
                None => object.early.push(character),
            },
            Event::End => self.object_ends(),
            Event::Broken => self.object_breaks(character),
            Event::Nothing => {}
        }
        if self.held.len() > MAX_HELD {
            self.give_up();
        }
    }

    fn named(&mut self, name: String) {
        let Place::Object(object) = &mut self.place else {
            return;
        };
        if object.index.is_some() {
            return;
        }
        if object.bare && !self.names.contains(&name) {
            return self.give_up();
        }
        let early = std::mem::take(&mut object.early);
        let index = self.calls;
        object.index = Some(index);
        self.call_begins(name);
        self.fragment(index, &early);
    }

    fn object_ends(&mut self) {
        let Place::Object(object) = &self.place else {
            return;
        };
        match (object.index, object.scan.has_arguments()) {
            (None, _) => self.give_up(),
            (Some(index), has_arguments) => {
                self.place = Place::After;
                if !has_arguments {
                    self.fragment(index, "{}");
                }
            }
        }
    }

    /// The character that broke an object may begin the next marker.
    fn object_breaks(&mut self, character: char) {
        let Place::Object(object) = &self.place else {
            return;
        };
        if object.index.is_some() {
            self.place = match self.format {
                ToolFormat::Llama => Place::Text,
                _ => Place::Skip,
            };
        } else {
            self.held.pop();
            self.give_up();
        }
        self.pending.insert(0, character);
    }

    fn after(&mut self, character: char) {
        let llama = self.format == ToolFormat::Llama;
        if character.is_whitespace() {
            if !self.held.is_empty() {
                self.held.push(character);
            }
        } else if llama && character == ';' && self.held.is_empty() {
            self.held.push(character);
        } else if llama && character == '{' {
            self.place = Object::place(false);
            self.of_object(character);
        } else {
            self.place = Place::Text;
            self.of_text(character);
        }
    }

    fn text(&mut self, text: &str) {
        if let Some(AnswerPiece::Text(before)) = self.pieces.last_mut() {
            before.push_str(text);
        } else if !text.is_empty() {
            self.pieces.push(AnswerPiece::Text(text.to_string()));
        }
    }

    fn fragment(&mut self, index: usize, more: &str) {
        if let Some(AnswerPiece::CallArguments { fragment, .. }) = self.pieces.last_mut() {
            fragment.push_str(more);
        } else if !more.is_empty() {
            let fragment = more.to_string();
            self.pieces
                .push(AnswerPiece::CallArguments { index, fragment });
        }
    }
}

/// The name in front of a line with ```` ```json ````, or of nothing.
fn without_fence(head: &str) -> &str {
    let head = head.trim();
    match head.split_once("```") {
        Some((name, _)) => name.trim(),
        None => head,
    }
}
