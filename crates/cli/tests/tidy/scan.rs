//! Rust sources taken apart without their grammar: code, comments, strings, functions.

/// A source taken apart; each part has the lines and columns of the whole, blanks elsewhere.
pub struct Scan {
    /// Neither comments nor what stands inside strings and characters.
    pub code: String,
    pub comments: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Code,
    LineComment,
    /// Block comments nest.
    BlockComment(usize),
    /// The number of `#` that close it, or `None` where backslashes escape.
    Text(Option<usize>),
}

pub fn scan(text: &str) -> Scan {
    let chars: Vec<char> = text.chars().collect();
    let (mut code, mut comments) = (String::new(), String::new());
    let mut part = Part::Code;
    let mut i = 0;
    while i < chars.len() {
        let (next, length) = step(&chars, i, part);
        for &c in &chars[i..i + length] {
            let blank = if c == '\n' { '\n' } else { ' ' };
            let (is_code, is_comment) = match (part, next) {
                (Part::LineComment | Part::BlockComment(_), _)
                | (_, Part::LineComment | Part::BlockComment(_)) => (false, true),
                (Part::Text(_), Part::Text(_)) => (false, false),
                _ => (true, false),
            };
            // The quotes of a character stay, what is between them does not.
            let is_code = is_code && (length == 1 || part != next || c == '\'');
            code.push(if is_code { c } else { blank });
            comments.push(if is_comment { c } else { blank });
        }
        (part, i) = (next, i + length);
    }
    Scan { code, comments }
}

/// What the characters from `i` on begin, continue or end, and how many of them belong together.
fn step(chars: &[char], i: usize, part: Part) -> (Part, usize) {
    let at = |k: usize| chars.get(i + k).copied().unwrap_or('\0');
    match part {
        Part::LineComment if at(0) == '\n' => (Part::Code, 1),
        Part::LineComment => (part, 1),
        Part::BlockComment(depth) => match (at(0), at(1), depth) {
            ('/', '*', _) => (Part::BlockComment(depth + 1), 2),
            ('*', '/', 1) => (Part::Code, 2),
            ('*', '/', _) => (Part::BlockComment(depth - 1), 2),
            _ => (part, 1),
        },
        Part::Text(None) => match at(0) {
            '\\' => (part, 2.min(chars.len() - i)),
            '"' => (Part::Code, 1),
            _ => (part, 1),
        },
        Part::Text(Some(hashes)) => {
            let closes = at(0) == '"' && (1..=hashes).all(|k| at(k) == '#');
            if closes {
                (Part::Code, 1 + hashes)
            } else {
                (part, 1)
            }
        }
        Part::Code => begin(chars, i),
    }
}

fn begin(chars: &[char], i: usize) -> (Part, usize) {
    let at = |k: usize| chars.get(i + k).copied().unwrap_or('\0');
    let in_word = i > 0 && is_word(chars[i - 1]);
    match at(0) {
        '/' if at(1) == '/' => (Part::LineComment, 2),
        '/' if at(1) == '*' => (Part::BlockComment(1), 2),
        '"' => (Part::Text(None), 1),
        'r' if !in_word || (chars[i - 1] == 'b' && (i < 2 || !is_word(chars[i - 2]))) => {
            let hashes = (1..).take_while(|&k| at(k) == '#').count();
            if at(1 + hashes) == '"' {
                (Part::Text(Some(hashes)), 2 + hashes)
            } else {
                (Part::Code, 1)
            }
        }
        '\'' => (Part::Code, character(chars, i)),
        _ => (Part::Code, 1),
    }
}

/// The length of a character literal, or 1 for the mark of a lifetime.
fn character(chars: &[char], i: usize) -> usize {
    let at = |k: usize| chars.get(i + k).copied().unwrap_or('\0');
    if at(1) == '\\' {
        let rest = (3..).find(|&k| at(k) == '\'' || at(k) == '\0');
        rest.map_or(1, |k| (k + 1).min(chars.len() - i))
    } else if at(2) == '\'' {
        3
    } else {
        1
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[derive(Debug, PartialEq)]
pub struct Function {
    pub name: String,
    /// Counted from 1.
    pub line: usize,
    /// From the line with `fn` to the one with its last brace.
    pub lines: usize,
}

/// The functions with a body outside `#[cfg(test)]` modules.
pub fn functions(code: &str) -> Vec<Function> {
    let code = without_test_modules(code);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if code[..at].chars().next_back().is_some_and(is_word) {
            continue;
        }
        let rest = &code[at + 3..];
        let name: String = rest
            .chars()
            .take_while(|&c| is_word(c) || c == '$')
            .collect();
        let Some(length) = body_end(rest).filter(|_| !name.is_empty()) else {
            continue;
        };
        let line = 1 + code[..at].matches('\n').count();
        let lines = 1 + rest[..length].matches('\n').count();
        found.push(Function { name, line, lines });
    }
    found
}

/// Where the body of a declaration ends; `None` for one that ends with a semicolon.
fn body_end(declaration: &str) -> Option<usize> {
    let mut brackets = 0i32;
    for (i, c) in declaration.char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if brackets == 0 => return None,
            '{' if brackets == 0 => return Some(i + closing_brace(&declaration[i..])),
            _ if brackets < 0 => return None,
            _ => {}
        }
    }
    None
}

/// The place of the brace that closes the first character, or the end.
fn closing_brace(text: &str) -> usize {
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    text.len()
}

/// The code with the bodies of `#[cfg(test)]` modules blanked.
pub fn without_test_modules(code: &str) -> String {
    let mut kept = code.to_string();
    for (at, mark) in code.match_indices("#[cfg(test)]") {
        let start = at + mark.len();
        if let Some(end) = body_end(&code[start..]) {
            let blank: String = code[start..=start + end]
                .chars()
                .map(|c| {
                    if c == '\n' {
                        "\n".to_string()
                    } else {
                        " ".repeat(c.len_utf8())
                    }
                })
                .collect();
            kept.replace_range(start..=start + end, &blank);
        }
    }
    kept
}

/// `unsafe {` or `unsafe impl` in a line of code; declarations have their contract elsewhere.
pub fn has_unsafe_block(code: &str) -> bool {
    code.match_indices("unsafe").any(|(at, word)| {
        let rest = code[at + word.len()..].trim_start();
        rest.starts_with('{') || rest.starts_with("impl")
    })
}

#[test]
fn the_scanner_tells_code_from_comments_and_strings() {
    let text = concat!(
        "let a = \"FIXME // \\\" {\"; // a comment \"here\n",
        "let b = r#\"un\"safe {\"#; /* one /* two */ still */ let c = '{';\n",
        "fn f<'a>(x: &'a str) -> char { '\\'' }\n",
        "let d = b\"{\"; let e = '\\u{7b}'; let for_r = 1;\n",
    );
    let scan = scan(text);
    for part in [&scan.code, &scan.comments] {
        assert_eq!(part.matches('\n').count(), 4);
        assert_eq!(part.chars().count(), text.chars().count());
    }
    assert!(!scan.code.contains("FIXME") && !scan.code.contains("comment"));
    assert!(!scan.code.contains("safe") && !scan.code.contains("still"));
    assert!(scan.comments.contains("// a comment \"here"));
    assert!(scan.comments.contains("still */"));
    assert!(scan.code.contains("let c = ' '"));
    assert!(scan.code.contains("fn f<'a>(x: &'a str)"));
    assert_eq!(scan.code.matches('{').count(), 1, "{}", scan.code);
    assert_eq!(scan.code.matches('}').count(), 1, "{}", scan.code);
    assert!(scan.code.contains("let for_r = 1;"));
}

#[test]
fn functions_are_measured_from_first_line_to_last() {
    let text = "\
impl A {
    fn short(x: [u8; 2]) { x.len(); }
    fn declared(f: fn(u8) -> u8);
    fn long(
        f: fn(u8) -> u8,
    ) -> u8 {
        if true { f(1) } else { f(2) }
    }
}
#[cfg(test)]
mod tests {
    fn unmeasured() {
    }
}
fn after() {
}
";
    let found: Vec<(String, usize, usize)> = functions(&scan(text).code)
        .into_iter()
        .map(|f| (f.name, f.line, f.lines))
        .collect();
    let want = [("short", 2, 1), ("long", 4, 5), ("after", 15, 2)];
    assert_eq!(found, want.map(|(name, a, b)| (name.to_string(), a, b)));
}

#[test]
fn unsafe_blocks_are_seen_and_unsafe_declarations_are_not() {
    for code in ["x = unsafe { y }", "unsafe impl Send for A {}", "unsafe  {"] {
        assert!(has_unsafe_block(code), "{code}");
    }
    for code in ["pub unsafe fn f() {", "unsafe_code", "unsafe fn(&A)"] {
        assert!(!has_unsafe_block(code), "{code}");
    }
}
