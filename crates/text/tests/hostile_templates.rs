//! Templates that try to use all memory or time. Each is an error of the probe or of the load.

use text::{ChatTemplate, Message};

fn outcome(template: &str) -> Result<String, String> {
    let loaded = ChatTemplate::new(template).map_err(|error| error.to_string())?;
    loaded.probe().map_err(|error| error.to_string())
}

fn refused(template: &str) -> String {
    let shown: String = template.chars().take(80).collect();
    let error = outcome(template).expect_err(&shown);
    assert!(
        error.contains("chat_template") || error.contains("the chat template"),
        "{error}"
    );
    assert!(error.len() < 500, "{error}");
    error
}

const BIG: &str = "{% set x = 'abcdefgh' %}";

fn doubled(statement: &str) -> String {
    format!("{BIG}{}{{{{ x|length }}}}", statement.repeat(60))
}

#[test]
fn what_doubles_is_stopped() {
    for template in [
        doubled("{% set x = x ~ x %}"),
        doubled("{% set x = x + x %}"),
        doubled("{% set x = [x, x] %}"),
        doubled("{% set x = {'a': x, 'b': x} %}"),
        doubled("{% set x = [x, x] | string %}"),
        doubled("{% set x = x | replace('', x) %}"),
        doubled("{% set x = x.replace('a', x) %}"),
        doubled("{% set x = [x, x] | join(x) %}"),
        doubled("{% set x = x.join([x, x]) %}"),
        doubled("{% set x = x | tojson | tojson %}"),
        doubled("{% set x = x | list | tojson %}"),
        doubled("{% set x %}{{ x }}{{ x }}{% endset %}"),
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}\
         {% endfor %}"
            .to_string(),
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}\
         {% endfor %}{{ n.x }}"
            .to_string(),
        "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('a') }}".to_string(),
        "{% macro f(x) %}{{ f([x, x]) }}{% endmacro %}{{ f('a') }}".to_string(),
        "{% macro f(x='a') %}{% for y in [x ~ x] %}{{ f(y) }}{% endfor %}{% endmacro %}{{ f() }}"
            .to_string(),
        // Many values of 100 kB and more, each kept.
        format!(
            "{}{}",
            doubled("{% if x|length < 100000 %}{% set x = x ~ x %}{% endif %}"),
            (0..3000)
                .map(|i| format!("{{% set a{i} = x ~ {i} %}}"))
                .collect::<String>()
        ),
        // Loops inside loops, each doubling.
        format!(
            "{}{}{}",
            "{% for x in ['a'] %}",
            "{% for x in [x ~ x] %}".repeat(60),
            "{% endfor %}".repeat(61)
        ),
    ] {
        refused(&template);
    }
}

#[test]
fn what_multiplies_is_refused() {
    for (template, said) in [
        ("{{ 'a' * 10**9 }}", "operator *"),
        ("{{ [0] * 10 }}", "operator *"),
        ("{{ 'a' | indent(10**12) }}", "operator *"),
        ("{{ 'a\nb' | indent(1000000000000) }}", "indent is wider"),
        (
            "{{ 'a\nb' | indent(width=1000000000000) }}",
            "indent is wider",
        ),
        ("{{ [1] | tojson(indent=1000000000000) }}", "limit is 16"),
        ("{{ '%1000000000d' | format(1) }}", "format"),
        ("{{ '{:1000000000}'.format(1) }}", "format"),
        ("{{ 'a'.center(1000000000) }}", "center"),
        ("{{ 'a'.ljust(1000000000) }}", "ljust"),
        ("{{ 'a'.zfill(1000000000) }}", "zfill"),
        ("{% with x = 'a' %}{{ x }}{% endwith %}", "with"),
        (
            "{% for x in [[1]] recursive %}{{ loop(x) }}{% endfor %}",
            "recursive",
        ),
        ("{% filter upper %}a{% endfilter %}", "filter"),
        ("{% include '/etc/passwd' %}", "include"),
        ("{{ debug() }}", "debug"),
        ("{{ 'a' | __guard_plain_upper }}", "taken"),
    ] {
        let error = refused(template);
        assert!(error.contains(said), "{template}: {error}");
    }
}

#[test]
fn what_runs_long_is_stopped() {
    let nested = "{% for i in range(9999) %}".repeat(5) + &"{% endfor %}".repeat(5);
    let text = "x".repeat(100_000);
    let written = format!("{{% for i in range(9999) %}}{text}{{% endfor %}}");
    let captured = format!("{{% set y %}}{written}{{% endset %}}");
    let called = format!(
        "{{% macro f() %}}{text}{{% endmacro %}}{{% for i in range(9999) %}}{{% set y = f() %}}\
         {{% endfor %}}"
    );
    let upper = "{% set x %}{% for i in range(9999) %}abcdefghijklmnopqrstuvwxyz{% endfor %}\
        {% endset %}{% for i in range(9999) %}{% for j in range(9999) %}\
        {% if x | upper == x.lower() %}{% endif %}{% endfor %}{% endfor %}";
    let held = "{% set n = namespace(a='') %}{% for i in range(9999) %}{% for j in range(9999) %}\
        {% set n.a = n.a ~ 'abcdefghijklmnopqrstuvwxyz' %}{% endfor %}{% endfor %}";
    for template in [nested.as_str(), &written, &captured, &called, upper, held] {
        refused(template);
    }
}

#[test]
fn deep_and_circular_values_are_stopped() {
    let deep = "{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = [n.x] %}\
        {% endfor %}";
    for template in [
        deep,
        "{% set n = namespace() %}{% set n.x = n %}{{ n }}",
        "{% set n = namespace() %}{% set m = namespace(n=n) %}{% set n.x = [m] %}{{ n ~ '' }}",
        &"{% if 1 %}".repeat(50_000),
        &format!("{{{{ {} }}}}", "[".repeat(50_000)),
        &format!("{{{{ {}1 }}}}", "not ".repeat(20_000)),
        &format!("{{{{ {}1 }}}}", "-".repeat(50_000)),
        &format!("{{{{ a{} }}}}", "|e".repeat(50_000)),
        &format!("{{{{ a{} }}}}", ".a".repeat(50_000)),
        &format!("{{{{ {}1 }}}}", "1 if 1 else ".repeat(9_000)),
        &format!("{{{{ {}1 }}}}", "1 and ".repeat(20_000)),
        &format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(9_000)),
        &format!("{{{{ {}{} }}}}", "[".repeat(140), "]".repeat(140)),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
    ] {
        // What is only odd may render; nothing may overflow the stack.
        let _ = outcome(template);
    }
    refused(deep);
    assert!(refused(&format!("{{% if 0 %}}{}", "{% elif 0 %}".repeat(200))).contains("elif"));
    refused("{% set n = namespace() %}{% set n.x = n %}{{ n }}");
    refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
}

#[test]
fn errors_name_the_line() {
    for (template, line) in [
        ("\n\n{{ a.b.c }}", 3),
        ("{# x\n #}\n{% for x in [1] %}\n{{ x.y.z }}{% endfor %}", 4),
        ("\n{% set x = 'a' * 3 %}", 2),
        ("\n\n\n{{ raise_exception('no') }}", 4),
        ("{% if x %}\n{% endfor %}", 2),
    ] {
        let error = refused(template);
        assert!(
            error.contains(&format!("chat_template:{line}")),
            "{template}: {error}"
        );
    }
}

/// The limits grow with what is given: a conversation of 3 MB renders, its text kept by name.
#[test]
fn long_conversations_render() {
    let template = ChatTemplate::new(
        "{% set all = namespace(n=0) %}{% for m in messages %}{% set text = m.content | trim %}\
         {% set all.n = all.n + 1 %}{{ '<' ~ text ~ '>' }}{% endfor %}{{ all.n }}",
    );
    let template = template.unwrap();
    let messages = [
        Message::new("user", &"word ".repeat(200_000)),
        Message::new("user", "x"),
    ];
    let messages: Vec<Message> = messages.iter().cycle().take(6).cloned().collect();
    let text = template.render(&messages, true, "", "").unwrap();
    assert_eq!(text.len(), 3 * (999_999 + 2) + 3 * 3 + 1);
}

/// What one tag can join is not seen before it is done; it is small enough.
#[test]
fn one_tag_joins_little() {
    let grown = "{% if x|length < 100000 %}{% set x = x ~ x %}{% endif %}".repeat(60);
    for joined in ["x ~ ", "[x] ~ "] {
        let joins = joined.repeat(47);
        let template = format!("{{% set x = '\\x01' %}}{grown}{{{{ ({joins}x) | length }}}}");
        // Either the clock stops it or the length is told.
        if let Ok(length) = outcome(&template) {
            assert!(
                length.parse::<usize>().unwrap() <= 48 * (256 << 10) * 6,
                "{length}"
            );
        }
    }
    refused(&format!("{{{{ {}'x' }}}}", "'x' ~ ".repeat(49)));
}
