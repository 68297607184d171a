//! Stop strings are found alike however the text is cut.

use text::StopMatcher;

/// What stands before the first stop string, and which it is, by looking at every end in order.
fn naive(text: &str, stops: &[&str]) -> (String, Option<usize>) {
    for end in 0..=text.len() {
        let at_end = (0..stops.len()).filter(|&index| {
            !stops[index].is_empty() && text.as_bytes()[..end].ends_with(stops[index].as_bytes())
        });
        // Of equal strings, the first.
        let longest = at_end.max_by_key(|&index| (stops[index].len(), std::cmp::Reverse(index)));
        if let Some(index) = longest {
            return (text[..end - stops[index].len()].to_string(), Some(index));
        }
    }
    (text.to_string(), None)
}

fn split<'a>(chunks: impl Iterator<Item = &'a str>, stops: &[&str]) -> (String, Option<usize>) {
    let stops = stops.iter().map(|stop| stop.to_string()).collect();
    let mut matcher = StopMatcher::new(stops);
    let (mut text, mut stop) = (String::new(), None);
    for chunk in chunks {
        let passed = matcher.push(chunk);
        text += &passed.text;
        assert!(stop.is_none() || passed == text::Passed::default());
        stop = stop.or(passed.stop);
    }
    text += &matcher.finish();
    (text, stop)
}

/// Marsaglia's xorshift.
fn random(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 33) as usize
}

fn word(state: &mut u64, length: usize) -> String {
    let letters = ["a", "b", "é", "ê", "\n"];
    (0..length)
        .map(|_| letters[random(state) % letters.len()])
        .collect()
}

#[test]
fn any_cut_gives_what_the_whole_gives() {
    let mut state = 0x5107_u64;
    println!("seed {state:#x}");
    let mut found = 0;
    for _ in 0..400 {
        let length = random(&mut state) % 24;
        let text = word(&mut state, length);
        let count = random(&mut state) % 4;
        let stops: Vec<String> = (0..count)
            .map(|_| {
                let length = random(&mut state) % 6;
                word(&mut state, length)
            })
            .collect();
        let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
        let expected = naive(&text, &stops);
        found += usize::from(expected.1.is_some());
        let cuts: Vec<usize> = (0..=text.len())
            .filter(|&at| text.is_char_boundary(at))
            .collect();
        for (index, &first) in cuts.iter().enumerate() {
            for &second in &cuts[index..] {
                let chunks = [&text[..first], &text[first..second], &text[second..]];
                assert_eq!(
                    split(chunks.into_iter(), &stops),
                    expected,
                    "{chunks:?} {stops:?}"
                );
            }
        }
        let characters = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]);
        assert_eq!(split(characters, &stops), expected, "{text:?} {stops:?}");
    }
    assert!((100..350).contains(&found), "{found}");
}

#[test]
fn only_what_may_be_a_beginning_is_held_back() {
    let mut matcher = StopMatcher::new(vec!["###".to_string(), "\n\nEnd".to_string()]);
    assert_eq!(matcher.push("a\n").text, "a");
    assert_eq!(matcher.push("b\n\n\nE").text, "\nb\n");
    assert_eq!(matcher.push("x##").text, "\n\nEx");
    let passed = matcher.push("#c");
    assert_eq!((passed.text.as_str(), passed.stop), ("", Some(0)));
    assert_eq!(matcher.push("d"), text::Passed::default());
    assert_eq!(matcher.finish(), "");
}

/// A search that starts over at every place would take 10^9 steps here.
#[test]
fn long_strings_that_almost_match_are_found() {
    let almost = "a".repeat(1000);
    let stops: Vec<String> = (0..16).map(|index| format!("{almost}b{index}")).collect();
    let mut matcher = StopMatcher::new(stops);
    let text = "a".repeat(1 << 20) + "b7 and more";
    let passed = matcher.push(&text);
    assert_eq!(passed.stop, Some(7));
    assert_eq!(passed.text.len(), (1 << 20) - 1000);
}
