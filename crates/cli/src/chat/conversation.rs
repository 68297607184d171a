//! What was said, and what a line of the user means.

use text::Message;

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    Say(String),
    New,
    System(&'a str),
    Regenerate,
    Save(&'a str),
    Set(&'a str, &'a str),
    Help,
    Quit,
}

pub const HELP: &str = "\
/new                 begin another conversation
/system TEXT         set the system message; without TEXT, remove it
/regenerate          answer the last message once more, otherwise
/set NAME VALUE      temperature, top_p, top_k, min_p, max_tokens or seed; `default` unsets
/save FILE           write the conversation as JSON to a new file
/help                this
/quit                end; so does Ctrl-D
A line that ends in \\ goes on in the next one. // begins a message with a slash.
Ctrl-C ends an answer.";

impl Line<'_> {
    /// # Errors
    /// In words: a command that there is not, or that lacks something.
    pub fn parse(line: &str) -> Result<Line<'_>, String> {
        let Some(command) = line.strip_prefix('/') else {
            return Ok(Line::Say(line.to_string()));
        };
        if command.starts_with('/') {
            return Ok(Line::Say(command.to_string()));
        }
        let (name, rest) = command
            .split_once(char::is_whitespace)
            .unwrap_or((command, ""));
        let rest = rest.trim();
        match (name, rest) {
            ("new", "") => Ok(Line::New),
            ("system", text) => Ok(Line::System(text)),
            ("regenerate", "") => Ok(Line::Regenerate),
            ("save", "") => Err("/save FILE: name a new file".to_string()),
            ("save", file) => Ok(Line::Save(file)),
            ("set", setting) => match setting.split_once(char::is_whitespace) {
                Some((name, value)) => Ok(Line::Set(name, value.trim())),
                None => Err("/set NAME VALUE: such as /set temperature 0.6".to_string()),
            },
            ("help", "") => Ok(Line::Help),
            ("quit" | "exit", "") => Ok(Line::Quit),
            ("new" | "regenerate" | "help" | "quit" | "exit", _) => {
                Err(format!("/{name} stands alone"))
            }
            _ => Err(format!(
                "/{name}: there is no such command; /help shows all"
            )),
        }
    }
}

/// The turns so far.
#[derive(Default)]
pub struct Conversation {
    system: Option<String>,
    turns: Vec<Turn>,
}

/// A message and its answer.
#[derive(Clone)]
struct Turn {
    user: String,
    thinking: String,
    answer: String,
}

impl Conversation {
    pub fn new(system: Option<&str>) -> Conversation {
        let mut conversation = Conversation::default();
        conversation.set_system(system.unwrap_or_default());
        conversation
    }

    /// Empty for none.
    pub fn set_system(&mut self, text: &str) {
        self.system = (!text.is_empty()).then(|| text.to_string());
    }

    pub fn clear(&mut self) {
        self.turns.clear();
    }

    /// What the model sees: no thinking of earlier turns, for that is how such models are trained.
    pub fn with(&self, user: &str) -> Vec<Message> {
        let mut messages = self.messages(false);
        messages.push(Message::new("user", user));
        messages
    }

    /// All of it, to be kept.
    pub fn whole(&self) -> Vec<Message> {
        self.messages(true)
    }

    fn messages(&self, with_thinking: bool) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        let mut messages: Vec<Message> = system.collect();
        for turn in &self.turns {
            messages.push(Message::new("user", &turn.user));
            let mut answer = Message::new("assistant", &turn.answer);
            if with_thinking && !turn.thinking.is_empty() {
                answer.reasoning_content = Some(turn.thinking.clone());
            }
            messages.push(answer);
        }
        messages
    }

    pub fn add(&mut self, user: String, thinking: String, answer: String) {
        self.turns.push(Turn {
            user,
            thinking,
            answer,
        });
    }

    /// Takes the last turn back; its message.
    pub fn take_back(&mut self) -> Option<String> {
        self.turns.pop().map(|turn| turn.user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_message_or_a_command() {
        let say = |text: &str| Ok(Line::Say(text.to_string()));
        for (line, expected) in [
            ("69 64 4 20", say("69 64 4 20")),
            ("//etc is a folder", say("/etc is a folder")),
            ("/new", Ok(Line::New)),
            ("/system  be brief ", Ok(Line::System("be brief"))),
            ("/system", Ok(Line::System(""))),
            ("/regenerate", Ok(Line::Regenerate)),
            ("/save a b.json", Ok(Line::Save("a b.json"))),
            ("/set top_p 0.9", Ok(Line::Set("top_p", "0.9"))),
            ("/help", Ok(Line::Help)),
            ("/quit", Ok(Line::Quit)),
        ] {
            assert_eq!(Line::parse(line), expected, "{line}");
        }
        for line in ["/save", "/set top_p", "/news", "/new one", "/"] {
            assert!(Line::parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_model_sees_no_thinking_of_earlier_turns() {
        let mut conversation = Conversation::new(Some("be brief"));
        conversation.add("1".to_string(), "hm".to_string(), "2".to_string());
        let roles = |messages: &[Message]| {
            let role = |message: &Message| message.role.clone();
            messages.iter().map(role).collect::<Vec<_>>().join(" ")
        };
        let seen = conversation.with("3");
        assert_eq!(roles(&seen), "system user assistant user");
        assert!(
            seen.iter()
                .all(|message| message.reasoning_content.is_none())
        );
        let kept = conversation.whole();
        assert_eq!(kept[2].reasoning_content.as_deref(), Some("hm"));
        assert_eq!(conversation.take_back().as_deref(), Some("1"));
        conversation.set_system("");
        assert_eq!(roles(&conversation.with("3")), "user");
        assert_eq!(conversation.take_back(), None);
    }
}
