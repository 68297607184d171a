//! Chat templates: ours, DeepSeek's shape, and hostile ones.

use text::{ChatTemplate, Message, REASONING_TEMPLATE};

fn render(template: &str, messages: &[Message], prompt: bool) -> Result<String, String> {
    let template = ChatTemplate::new(template).map_err(|error| error.to_string())?;
    template
        .render(messages, prompt, "<bos>", "<eos>")
        .map_err(|error| error.to_string())
}

#[test]
fn our_template_opens_thinking_and_forgets_it() {
    let user = Message::new("user", " 69 64 4 20\n");
    let answered = Message::new("assistant", "20 4 </think> x </think> 5 * 4 20 <eos>");
    let next = Message::new("user", "16 7 4 48");
    let ask = |messages: &[Message], prompt| render(REASONING_TEMPLATE, messages, prompt);
    assert_eq!(
        ask(std::slice::from_ref(&user), true).unwrap(),
        "69 64 4 20 <think>"
    );
    assert_eq!(
        ask(std::slice::from_ref(&user), false).unwrap(),
        "69 64 4 20"
    );
    assert_eq!(
        ask(&[user, answered, next], true).unwrap(),
        "69 64 4 20 5 * 4 20 <eos> 16 7 4 48 <think>"
    );
    assert_eq!(ask(&[], true).unwrap(), " <think>");
    let error = ask(&[Message::new("tool", "x")], true).unwrap_err();
    assert!(error.contains("role tool is not known"), "{error}");
}

/// What is in a message is text: it is never rendered as a template.
#[test]
fn content_is_not_a_template() {
    let user = Message::new("user", "{{ 1 + 1 }} {% raw %} <b> & \"");
    let text = render(REASONING_TEMPLATE, &[user], false).unwrap();
    assert_eq!(text, "{{ 1 + 1 }} {% raw %} <b> & \"");
}

/// Constructs of published templates: namespaces, Python methods, white space control, `tojson`.
#[test]
fn published_constructs_work() {
    let template = "{% set ns = namespace(first=true) %}{{ bos_token }}\
        {%- for m in messages %}\n    {% if m.role == 'user' %}\n<|User|>{{ m['content'] }}\
        {% elif m.content.startswith('<think>') %}\n\
        <|Assistant|>{{ m.content.split('</think>')[-1] | trim }}{{ eos_token }}\
        {% endif %}\n{% endfor %}\n{{ {'a': [1, none, true]} | tojson }}";
    let messages = [
        Message::new("user", "hi"),
        Message::new("assistant", "<think>a</think> b"),
        Message::new("user", "ho"),
    ];
    assert_eq!(
        render(template, &messages, true).unwrap(),
        "<bos><|User|>hi<|Assistant|>b<eos><|User|>ho{\"a\": [1, null, true]}"
    );
}

#[test]
fn hostile_templates_are_errors() {
    let nested = "{% if 1 %}".repeat(50_000);
    let brackets = format!("{{{{ {} }}}}", "(".repeat(50_000));
    let long = " ".repeat(300 << 10);
    let loops = "{% for i in range(99999) %}".repeat(4) + "{% endfor %}".repeat(4).as_str();
    for template in [
        nested.as_str(),
        &brackets,
        &long,
        &loops,
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10**9 }}",
        "{{ 'a' * 10**8 }}",
        "{{ 'a' | indent(10**12) }}",
        "{{ 'a\\nb' | indent(width=10**12) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ [1] | batch(10**12, 0) }}",
        "{{ [1] | slice(10**12, 0) }}",
        "{{ self.__class__.__mro__ }}",
        "{{ messages.__class__.__base__ }}",
        "{{ undefined_thing.field }}",
        "{{ undefined_function() }}",
        "{% include '/etc/passwd' %}",
        "{% extends 'other' %}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{% for %}",
        "{{",
    ] {
        let outcome = render(template, &[Message::new("user", "hi")], true);
        let shown: String = template.chars().take(60).collect();
        let error = outcome.expect_err(&shown);
        assert!(
            error.len() < 500 && error.contains("chat"),
            "{shown}: {error}"
        );
    }
}

#[test]
fn long_conversations_fit_the_limits() {
    let turn = [
        Message::new("user", "1 2 3"),
        Message::new("assistant", "4 </think> 5"),
    ];
    let messages: Vec<Message> = turn.iter().cycle().take(10_000).cloned().collect();
    assert!(
        render(REASONING_TEMPLATE, &messages, true)
            .unwrap()
            .ends_with("5 <eos> <think>")
    );
}
