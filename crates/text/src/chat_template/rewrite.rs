//! Puts checks into a template's source, so that nothing it builds grows without bound.
//!
//! minijinja counts instructions, and one instruction can double a string. So every value that a
//! template gives a name goes through a function of ours ([`BOUND`]): the right side of `set`, what
//! a `for` runs over, the arguments of a macro. The body of a `for` or macro starts with a call of
//! [`TICK`], which counts its text and looks at the clock. What one tag may join is limited by
//! counting its operators. Line numbers stay as they are.

use std::fmt::Write;

/// What no template may say: our names start with it.
pub(super) const PREFIX: &str = "__guard";
/// The function that refuses a value that is too large or too deep, and else returns it.
pub(super) const BOUND: &str = "__guard_bound";
/// As [`BOUND`], for what is put into a namespace: it may not hold a namespace, which could be
/// itself.
pub(super) const HELD: &str = "__guard_held";
/// The function that is told how many bytes of text the body of a loop or macro has.
pub(super) const TICK: &str = "__guard_tick";
/// `+`, `~` and `,` in one tag: each can make a value as long as both sides together.
const MAX_JOINS: usize = 48;
/// Words and signs in one tag; a chain of them nests as deep in the parsed template.
const MAX_WORDS: usize = 1024;
/// `elif` in the whole template; a chain of them nests too.
const MAX_ELIFS: usize = 128;
/// Statements that name values in ways that are not rewritten, and those for many templates. No
/// published chat template has one.
const REFUSED: [&str; 9] = [
    "block", "call", "extends", "filter", "from", "import", "include", "raw", "with",
];

/// A refusal: the line in the template, and why.
pub(super) struct Refusal {
    pub(super) line: usize,
    pub(super) reason: String,
}

/// A template's source with the checks in it.
pub(super) fn rewrite(source: &str) -> std::result::Result<String, Refusal> {
    let mut rewriter = Rewriter {
        source,
        at: 0,
        out: Vec::new(),
        bodies: Vec::new(),
        elifs: 0,
    };
    rewriter.run().map_err(|reason| Refusal {
        line: 1 + source[..rewriter.at].matches('\n').count(),
        reason,
    })?;
    Ok(rewriter.out.concat())
}

type Outcome<T> = std::result::Result<T, String>;

struct Rewriter<'a> {
    source: &'a str,
    /// Bytes read.
    at: usize,
    out: Vec<String>,
    /// For each open `for` and `macro`: its place in `out` for the tick, and its bytes of text.
    bodies: Vec<(usize, usize)>,
    elifs: usize,
}

impl<'a> Rewriter<'a> {
    fn run(&mut self) -> Outcome<()> {
        if self.source.contains(PREFIX) {
            return Err(format!("names with {PREFIX} are taken"));
        }
        while let Some(start) = next_tag(&self.source[self.at..]) {
            self.text(start);
            let source = self.source;
            let rest = &source[self.at..];
            match &rest[..2] {
                "{#" => {
                    let end = rest[2..].find("#}").ok_or("a comment does not end")?;
                    self.copy(end + 4);
                }
                "{{" => {
                    let tokens = tokens(&rest[2..], "}}")?;
                    check(&tokens)?;
                    self.copy(2 + tokens.length);
                }
                _ => self.block(rest)?,
            }
        }
        self.text(self.source.len() - self.at);
        Ok(())
    }

    fn copy(&mut self, bytes: usize) {
        self.out
            .push(self.source[self.at..self.at + bytes].to_string());
        self.at += bytes;
    }

    /// Text outside of tags.
    fn text(&mut self, bytes: usize) {
        if let Some((_, total)) = self.bodies.last_mut() {
            *total += bytes;
        }
        self.copy(bytes);
    }

    /// `{% ... %}`
    fn block(&mut self, rest: &'a str) -> Outcome<()> {
        let inner = &rest[2..];
        let tokens = tokens(inner, "%}")?;
        check(&tokens)?;
        let keyword = tokens.words.first().map_or("", |word| word.text);
        if REFUSED.contains(&keyword) {
            return Err(format!("{keyword} blocks are not supported"));
        }
        self.elifs += usize::from(keyword == "elif");
        if self.elifs > MAX_ELIFS {
            return Err(format!("more than {MAX_ELIFS} of elif"));
        }
        let (body, end) = inner[..tokens.length].split_at(tokens.length - tokens.end);
        match keyword {
            "set" => self
                .out
                .push(format!("{{%{}{end}", bound_set(body, &tokens))),
            "for" => {
                let body = bound_for(body, &tokens)?;
                self.open(&format!("{{%{body}%}}"), &[], end);
            }
            "macro" => self.open(&format!("{{%{body}%}}"), &parameters(&tokens), end),
            _ => {
                if matches!(keyword, "endfor" | "endmacro") {
                    self.close();
                }
                self.out.push(rest[..2 + tokens.length].to_string());
            }
        }
        self.at += 2 + tokens.length;
        Ok(())
    }

    /// A tag that opens a body, and the checks at the body's beginning. The last tag has the
    /// original's end, which decides what happens to white space.
    fn open(&mut self, tag: &str, parameters: &[&str], end: &str) {
        let mut tags = tag.to_string();
        for name in parameters {
            write!(tags, "{{% set {name} = {BOUND}({name}) %}}").expect("strings take all");
        }
        self.out.push(tags);
        self.bodies.push((self.out.len(), 0));
        self.out.push(String::new());
        self.out.push(end.to_string());
    }

    fn close(&mut self) {
        // One too many is a syntax error, which minijinja reports.
        if let Some((place, bytes)) = self.bodies.pop() {
            self.out[place] = format!("{{% set __guard_turn = {TICK}({bytes}) ");
        }
    }
}

/// Where the next `{{`, `{%` or `{#` starts.
fn next_tag(source: &str) -> Option<usize> {
    let bytes = source.as_bytes();
    bytes
        .windows(2)
        .position(|pair| matches!(pair, b"{{" | b"{%" | b"{#"))
}

/// A word or an operator sign in a tag.
struct Word<'a> {
    text: &'a str,
    start: usize,
    depth: usize,
}

/// What is in a tag.
struct Tokens<'a> {
    /// Words, and signs one by one; no strings, numbers or white space.
    words: Vec<Word<'a>>,
    /// Bytes up to and with the tag's end.
    length: usize,
    /// Bytes of the end: `%}`, `-%}`, or `}}` and so on.
    end: usize,
}

/// Reads a tag as minijinja's lexer does: strings with escapes, brackets that hide the end.
fn tokens<'a>(inner: &'a str, end: &str) -> Outcome<Tokens<'a>> {
    let mut words = Vec::new();
    let (mut at, mut depth) = (0, 0_usize);
    // The sign after the opening: `{%-`.
    if inner.starts_with(['-', '+']) {
        at = 1;
    }
    while let Some(character) = inner[at..].chars().next() {
        if depth == 0 {
            let rest = &inner[at..];
            let sign = usize::from(rest.starts_with(['-', '+']));
            if rest[sign..].starts_with(end) {
                let end = sign + end.len();
                return Ok(Tokens {
                    words,
                    length: at + end,
                    end,
                });
            }
        }
        let start = at;
        at += match character {
            '"' | '\'' => string_length(&inner[at..], character)?,
            _ if is_word(character) => {
                let rest = &inner[at..];
                rest.find(|c| !is_word(c)).unwrap_or(rest.len())
            }
            _ => character.len_utf8(),
        };
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.checked_sub(1).ok_or("brackets do not match")?,
            _ => {}
        }
        if !character.is_whitespace() && !matches!(character, '"' | '\'' | '0'..='9') {
            let text = &inner[start..at];
            words.push(Word { text, start, depth });
        }
    }
    Err("a tag does not end".to_string())
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Bytes of a string with its quotes.
fn string_length(rest: &str, quote: char) -> Outcome<usize> {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return Ok(at + 1),
            _ => {}
        }
    }
    Err("a string does not end".to_string())
}

/// Refuses tags that could multiply text by themselves.
fn check(tokens: &Tokens) -> Outcome<()> {
    let count = |signs: &[&str]| {
        let words = tokens.words.iter();
        words.filter(|word| signs.contains(&word.text)).count()
    };
    if count(&["*"]) > 0 {
        return Err("the operator * is not supported: it multiplies text".to_string());
    }
    let words = tokens.words.len();
    if words > MAX_WORDS {
        return Err(format!(
            "{words} words and signs in one tag; the limit is {MAX_WORDS}"
        ));
    }
    let joins = count(&["+", "~", ","]);
    if joins > MAX_JOINS {
        return Err(format!(
            "{joins} of + ~ , in one tag; the limit is {MAX_JOINS}"
        ));
    }
    Ok(())
}

/// `set name = value` with the value bound; a `set` block has no value and is left alone.
fn bound_set(body: &str, tokens: &Tokens) -> String {
    let is_sign = |index: usize, signs: &[&str]| {
        tokens
            .words
            .get(index)
            .is_some_and(|word| signs.contains(&word.text))
    };
    let equal = (1..tokens.words.len()).find(|&index| {
        tokens.words[index].depth == 0
            && is_sign(index, &["="])
            && !is_sign(index + 1, &["="])
            && !is_sign(index - 1, &["=", "!", "<", ">"])
    });
    let Some(equal) = equal else {
        return body.to_string();
    };
    let (target, value) = body.split_at(tokens.words[equal].start + 1);
    let function = if target.contains('.') { HELD } else { BOUND };
    format!("{target} {function}(({value})) ")
}

/// `for name in values if condition` with the values bound.
fn bound_for(body: &str, tokens: &Tokens) -> Outcome<String> {
    let find = |text: &[&str], from: usize| {
        let mut words = tokens.words.iter();
        words
            .position(|word| word.depth == 0 && word.start >= from && text.contains(&word.text))
            .map(|index| &tokens.words[index])
    };
    let within = find(&["in"], 0).ok_or("a for has no in")?;
    let start = within.start + 2;
    if find(&["recursive"], start).is_some() {
        return Err("recursive loops are not supported".to_string());
    }
    let end = find(&["if"], start).map_or(body.len(), |word| word.start);
    let (before, values, after) = (&body[..start], &body[start..end], &body[end..]);
    Ok(format!("{before} {BOUND}(({values})) {after}"))
}

/// The names of a macro's parameters: the words after its bracket and after the commas in it.
fn parameters<'a>(tokens: &Tokens<'a>) -> Vec<&'a str> {
    let pairs = tokens.words.windows(2);
    pairs
        .filter(|pair| pair[0].depth == 1 && matches!(pair[0].text, "(" | ","))
        .map(|pair| pair[1].text)
        .filter(|name| name.starts_with(|first: char| first.is_alphabetic() || first == '_'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::rewrite;

    #[test]
    fn checks_are_put_in() {
        for (source, expected) in [
            ("a {{ b + 'c}}' }} d", "a {{ b + 'c}}' }} d"),
            (
                "{%- set a = b ~ c -%}",
                "{%- set a = __guard_bound(( b ~ c )) -%}",
            ),
            (
                "{% set n.a = [b] %}",
                "{% set n.a = __guard_held(( [b] )) %}",
            ),
            (
                "{% set a, b = 1, 2 %}",
                "{% set a, b = __guard_bound(( 1, 2 )) %}",
            ),
            ("{% set a %}b{% endset %}", "{% set a %}b{% endset %}"),
            (
                "{% set a = b == c %}",
                "{% set a = __guard_bound(( b == c )) %}",
            ),
            (
                "{% for a in b if c -%} de{% endfor %}f",
                "{% for a in __guard_bound(( b )) if c %}{% set __guard_turn = __guard_tick(3) -%}\
                 \u{20}de{% endfor %}f",
            ),
            (
                "{% macro f(a, b=(1, 2)) %}{% endmacro %}",
                "{% macro f(a, b=(1, 2)) %}{% set a = __guard_bound(a) %}\
                 {% set b = __guard_bound(b) %}\
                 {% set __guard_turn = __guard_tick(0) %}{% endmacro %}",
            ),
            (
                "{# {{ * }} #}{{ {'a': {}} }}",
                "{# {{ * }} #}{{ {'a': {}} }}",
            ),
            (
                "{% if a == '\\'%}' %}{% endif %}",
                "{% if a == '\\'%}' %}{% endif %}",
            ),
        ] {
            let rewritten = rewrite(source).unwrap_or_else(|refusal| refusal.reason);
            assert_eq!(rewritten, expected, "{source}");
        }
    }

    #[test]
    fn refusals_name_the_line() {
        for (source, line, said) in [
            ("\n{{ 'a' * 3 }}", 2, "operator *"),
            ("{% with a = b %}{% endwith %}", 1, "with blocks"),
            ("\n\n{%- call f() %}", 3, "call blocks"),
            ("{% for a in b recursive %}", 1, "recursive"),
            ("{% for a %}", 1, "no in"),
            ("{{ __guard_bound }}", 1, "taken"),
            ("{{ a", 1, "tag does not end"),
            ("{{ ) }}", 1, "brackets"),
            ("{{ 'a }}", 1, "string does not end"),
            ("{# a", 1, "comment does not end"),
        ] {
            let Err(refusal) = rewrite(source) else {
                panic!("{source} is not refused")
            };
            assert_eq!(refusal.line, line, "{source}");
            assert!(
                refusal.reason.contains(said),
                "{source}: {}",
                refusal.reason
            );
        }
        let long = format!("{{{{ {}a }}}}", "a ~ ".repeat(49));
        assert!(rewrite(&long).is_err());
    }
}
