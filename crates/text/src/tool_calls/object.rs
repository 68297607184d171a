//! The JSON object of a call, character by character: its name, and its arguments as they come.

/// A longer key or name is no call's.
const MAX_WORD: usize = 1 << 10;

/// What a character told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    Nothing,
    /// The name is known.
    Name(String),
    /// The character belongs to the value of `arguments` or `parameters`.
    Argument,
    /// The object ended with this character.
    End,
    /// This is no such object.
    Broken,
}

/// Follows one object. What is inside of values is followed by its brackets and strings only, so
/// arguments that are wrong JSON inside come through as they are.
#[derive(Clone, Debug)]
pub(super) struct CallObject {
    place: Place,
    key: Key,
    /// Whether arguments came; further ones are not the call's.
    has_arguments: bool,
    /// The JSON text of the present key or of the name, with its quotes.
    word: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Open,
    /// In front of a key; the object may end here only if it is empty.
    Key {
        first: bool,
    },
    InKey {
        escaped: bool,
    },
    Colon,
    Value,
    /// Inside a string that is the value or in it, under so many open brackets.
    InString {
        escaped: bool,
        depth: usize,
    },
    /// Inside brackets.
    Nested {
        depth: usize,
    },
    /// Inside a number, `true`, `false` or `null`.
    Scalar,
    Comma,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Name,
    Arguments,
    Other,
}

impl CallObject {
    pub(super) fn new() -> CallObject {
        CallObject {
            place: Place::Open,
            key: Key::Other,
            has_arguments: false,
            word: String::new(),
        }
    }

    /// Whether nothing but white space came so far.
    pub(super) fn is_fresh(&self) -> bool {
        self.place == Place::Open
    }

    pub(super) fn push(&mut self, character: char) -> Event {
        match self.place {
            Place::InKey { escaped } => self.in_key(character, escaped),
            Place::InString { escaped, depth } => self.in_string(character, escaped, depth),
            Place::Nested { depth } => self.nested(character, depth),
            Place::Scalar => self.scalar(character),
            _ if is_space(character) => Event::Nothing,
            Place::Open => self.expect(character == '{', Place::Key { first: true }),
            Place::Key { first } => match character {
                '"' => {
                    self.word = character.to_string();
                    self.expect(true, Place::InKey { escaped: false })
                }
                '}' if first => Event::End,
                _ => Event::Broken,
            },
            Place::Colon => self.expect(character == ':', Place::Value),
            Place::Value => self.value(character),
            Place::Comma => match character {
                '}' => Event::End,
                _ => self.expect(character == ',', Place::Key { first: false }),
            },
        }
    }

    fn expect(&mut self, right: bool, next: Place) -> Event {
        self.place = next;
        match right {
            true => Event::Nothing,
            false => Event::Broken,
        }
    }

    fn in_key(&mut self, character: char, escaped: bool) -> Event {
        self.word.push(character);
        if self.word.len() > MAX_WORD {
            return Event::Broken;
        }
        if escaped || character != '"' {
            let escaped = !escaped && character == '\\';
            return self.expect(true, Place::InKey { escaped });
        }
        self.key = match serde_json::from_str::<String>(&self.word).as_deref() {
            Ok("name") => Key::Name,
            Ok("arguments" | "parameters") if !self.has_arguments => Key::Arguments,
            Ok(_) => Key::Other,
            Err(_) => return Event::Broken,
        };
        self.has_arguments |= self.key == Key::Arguments;
        self.expect(true, Place::Colon)
    }

    pub(super) fn has_arguments(&self) -> bool {
        self.has_arguments
    }

    fn value(&mut self, character: char) -> Event {
        self.word.clear();
        self.place = match character {
            '"' => Place::InString {
                escaped: false,
                depth: 0,
            },
            '{' | '[' => Place::Nested { depth: 1 },
            _ if is_scalar(character) => Place::Scalar,
            _ => return Event::Broken,
        };
        match self.key {
            Key::Name if character != '"' => Event::Broken,
            _ => self.of_value(character),
        }
    }

    /// A character of a value, by its key.
    fn of_value(&mut self, character: char) -> Event {
        match self.key {
            Key::Arguments => Event::Argument,
            Key::Other => Event::Nothing,
            Key::Name => {
                self.word.push(character);
                self.expect(self.word.len() <= MAX_WORD, self.place)
            }
        }
    }

    fn in_string(&mut self, character: char, escaped: bool, depth: usize) -> Event {
        if escaped || character != '"' {
            let escaped = !escaped && character == '\\';
            self.place = Place::InString { escaped, depth };
            return self.of_value(character);
        }
        self.leave(depth);
        let event = self.of_value(character);
        if self.key != Key::Name {
            return event;
        }
        match serde_json::from_str::<String>(&self.word) {
            Ok(name) if !name.is_empty() => Event::Name(name),
            _ => Event::Broken,
        }
    }

    /// Something ended under so many open brackets.
    fn leave(&mut self, depth: usize) {
        self.place = match depth {
            0 => Place::Comma,
            _ => Place::Nested { depth },
        };
    }

    fn nested(&mut self, character: char, depth: usize) -> Event {
        match character {
            '"' => {
                let escaped = false;
                self.place = Place::InString { escaped, depth };
            }
            '{' | '[' => self.place = Place::Nested { depth: depth + 1 },
            '}' | ']' => self.leave(depth - 1),
            ',' | ':' => {}
            _ if is_scalar(character) || is_space(character) => {}
            // Outside of strings nothing else is JSON: the value was cut off.
            _ => return Event::Broken,
        }
        self.of_value(character)
    }

    fn scalar(&mut self, character: char) -> Event {
        if is_scalar(character) {
            return self.of_value(character);
        }
        self.place = Place::Comma;
        self.push(character)
    }
}

fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r')
}

fn is_scalar(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '+' | '-' | '.')
}

#[cfg(test)]
mod tests {
    use super::{CallObject, Event};

    /// Name, arguments, and how it ended with the last character.
    fn follow(text: &str) -> (Option<String>, String, Event) {
        let mut object = CallObject::new();
        let (mut name, mut arguments, mut last) = (None, String::new(), Event::Nothing);
        for character in text.chars() {
            last = object.push(character);
            match &last {
                Event::Name(found) => name = Some(found.clone()),
                Event::Argument => arguments.push(character),
                Event::Nothing => {}
                Event::End | Event::Broken => break,
            }
        }
        (name, arguments, last)
    }

    #[test]
    fn the_parts_of_an_object_are_found() {
        let cases = [
            (
                r#"{"name": "f", "arguments": {"a": "}\"]"}}"#,
                r#"{"a": "}\"]"}"#,
            ),
            (
                r#" { "id" : -1.5e3 ,"arguments":[1, [2]] , "name":"\u0066"}"#,
                "[1, [2]]",
            ),
            (
                r#"{"parameters": null, "x": {"name": 2}, "name": "f"}"#,
                "null",
            ),
            (r#"{"name": "f", "parameters": "a\\"}"#, r#""a\\""#),
            (r#"{"name":"f"}"#, ""),
        ];
        for (text, arguments) in cases {
            let expected = (Some("f".to_string()), arguments.to_string(), Event::End);
            assert_eq!(follow(text), expected, "{text}");
        }
        for broken in [
            "x",
            "[",
            r#"{name"#,
            r#"{"a" 1"#,
            r#"{"a": 1 2"#,
            r#"{"name": 1"#,
            r#"{"a": <"#,
            r#"{"a": [<"#,
            r#"{"a": 1,}"#,
            r#"{"name": """#,
            r#"{"\x": "#,
            r#"{"name": "\x""#,
        ] {
            assert_eq!(follow(broken).2, Event::Broken, "{broken}");
        }
        let long = format!(r#"{{"{}"#, "n".repeat(2000));
        assert_eq!(follow(&long).2, Event::Broken);
    }
}
