//! Templates built like those of DeepSeek-R1, Qwen3 and Llama 3, and what they must render.

use serde_json::{Value, json};
use text::{ChatTemplate, Message, Prompt, opens_thinking};

/// DeepSeek-R1: no lines around roles, thinking cut from history and primed at the end.
const R1: &str = r##"{% if not add_generation_prompt is defined %}
{% set add_generation_prompt = false %}
{% endif %}
{%- set ns = namespace(system='', after_tool=false, first_output=true) -%}
{%- for m in messages -%}
  {%- if m['role'] == 'system' -%}{%- set ns.system = ns.system + m['content'] -%}{%- endif -%}
{%- endfor -%}
{{- bos_token ~ ns.system -}}
{%- for m in messages -%}
  {%- if m['role'] == 'user' -%}
    {%- set ns.after_tool = false -%}
    {{- '<｜User｜>' + m['content'] -}}
  {%- elif m['role'] == 'assistant' and m['tool_calls'] is defined and m['tool_calls'] -%}
    {%- for call in m['tool_calls'] -%}
      {%- if loop.first -%}{{- '<｜Assistant｜><｜tool▁calls▁begin｜>' -}}
      {%- else -%}{{- '\n' -}}{%- endif -%}
      {{- '<｜tool▁call▁begin｜>' + call['type'] + '<｜tool▁sep｜>' + call['function']['name'] -}}
      {{- '\n```json\n' + call['function']['arguments'] + '\n```<｜tool▁call▁end｜>' -}}
      {%- if loop.last -%}{{- '<｜tool▁calls▁end｜>' + eos_token -}}{%- endif -%}
    {%- endfor -%}
  {%- elif m['role'] == 'assistant' and m['content'] is not none -%}
    {%- set content = m['content'] -%}
    {%- if '</think>' in content -%}{%- set content = content.split('</think>')[-1] -%}{%- endif -%}
    {{- ('' if ns.after_tool else '<｜Assistant｜>') + content + eos_token -}}
    {%- set ns.after_tool = false -%}
  {%- elif m['role'] == 'tool' -%}
    {%- set ns.after_tool = true -%}
    {{- '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + m['content'] -}}
    {{- '<｜tool▁output▁end｜><｜tool▁outputs▁end｜>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not ns.after_tool -%}
  {{- '<｜Assistant｜><think>\n' -}}
{%- endif -%}"##;

/// Qwen3: ChatML, tools as JSON lines, thinking kept only after the last question.
const QWEN3: &str = r##"{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- "# Tools\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for m in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and m.role == "user" and m.content is string %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {%- if m.role == "user" or (m.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif m.role == "assistant" %}
        {%- set thinking = '' %}
        {%- if m.reasoning_content is string %}
            {%- set thinking = m.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thinking = content.split('</think>')[0].rstrip('\n') %}
            {%- set thinking = thinking.split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thinking) %}
            {{- '<|im_start|>assistant\n<think>\n' + thinking.strip('\n') }}
            {{- '\n</think>\n\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + m.role + '\n' + content }}
        {%- endif %}
        {%- for call in m.tool_calls or [] %}
            {%- set f = call.function if call.function else call %}
            {{- '\n<tool_call>\n{"name": "' + f.name + '", "arguments": ' }}
            {{- f.arguments if f.arguments is string else f.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif m.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"##;

/// Llama 3: header ids, a date, alternation checked.
const LLAMA3: &str = r##"{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\nToday Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate') }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"##;

fn call(name: &str, arguments: Value) -> Value {
    json!({ "type": "function", "id": "1", "function": { "name": name, "arguments": arguments } })
}

fn calling(calls: Vec<Value>) -> Message {
    Message {
        role: "assistant".to_string(),
        tool_calls: Some(calls),
        ..Message::default()
    }
}

fn prompt(messages: &[Message]) -> Prompt<'_> {
    Prompt {
        messages,
        add_generation_prompt: true,
        bos_token: "<bos>",
        eos_token: "<eos>",
        ..Prompt::default()
    }
}

#[test]
fn r1_primes_thinking_and_cuts_history() {
    let template = ChatTemplate::new(R1).unwrap();
    let messages = [
        Message::new("system", "Be brief."),
        Message::new("user", "1+1?"),
        Message::new("assistant", "<think>\none and one\n</think>\n\n2"),
        Message::new("user", "2+2?"),
    ];
    let text = template.render_prompt(&prompt(&messages)).unwrap();
    assert_eq!(
        text,
        "<bos>Be brief.<｜User｜>1+1?<｜Assistant｜>\n\n2<eos><｜User｜>2+2?<｜Assistant｜><think>\n"
    );
    assert!(opens_thinking(&text));
}

#[test]
fn r1_calls_tools() {
    let template = ChatTemplate::new(R1).unwrap();
    let calls = vec![call("f", json!("{\"a\": 1}")), call("g", json!("{}"))];
    let messages = [
        Message::new("user", "x"),
        calling(calls),
        Message::new("tool", "7"),
    ];
    assert_eq!(
        template.render_prompt(&prompt(&messages)).unwrap(),
        "<bos><｜User｜>x<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function\
         <｜tool▁sep｜>f\n```json\n{\"a\": 1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function\
         <｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><eos>\
         <｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>7<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
    );
    // R1's own template joins the arguments as text, and so fails on an object.
    let messages = [calling(vec![call("f", json!({ "a": 1 }))])];
    assert!(template.render_prompt(&prompt(&messages)).is_err());
}

#[test]
fn qwen3_switches_thinking_off() {
    let template = ChatTemplate::new(QWEN3).unwrap();
    let messages = [
        Message::new("user", "a"),
        Message::new("assistant", "<think>\nb\n</think>\n\nc"),
        Message::new("user", "d"),
    ];
    let history = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nc<|im_end|>\n\
                   <|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\n";
    let mut asked = prompt(&messages);
    assert_eq!(template.render_prompt(&asked).unwrap(), history);
    let off = [("enable_thinking", json!(false))];
    asked.kwargs = &off;
    let text = template.render_prompt(&asked).unwrap();
    assert_eq!(text, format!("{history}<think>\n\n</think>\n\n"));
    assert!(!opens_thinking(&text));
    let on = [("enable_thinking", json!(true))];
    asked.kwargs = &on;
    assert_eq!(template.render_prompt(&asked).unwrap(), history);
    let other = [("chat_template", json!("x"))];
    asked.kwargs = &other;
    let error = template.render_prompt(&asked).unwrap_err().to_string();
    assert!(
        error.contains("setting chat_template is not one of"),
        "{error}"
    );
}

#[test]
fn qwen3_shows_tools_and_answers() {
    let template = ChatTemplate::new(QWEN3).unwrap();
    let mut asking = calling(vec![call("f", json!({ "a": "<é>" }))]);
    asking.reasoning_content = Some("need f".to_string());
    let messages = [
        Message::new("system", "S"),
        Message::new("user", "x"),
        asking,
        Message::new("tool", "1"),
        Message::new("tool", "2"),
    ];
    let tools = [json!({ "name": "f" })];
    let mut asked = prompt(&messages);
    asked.tools = &tools;
    assert_eq!(
        template.render_prompt(&asked).unwrap(),
        "<|im_start|>system\nS\n\n# Tools\n<tools>\n{\"name\": \"f\"}\n</tools><|im_end|>\n\
         <|im_start|>user\nx<|im_end|>\n\
         <|im_start|>assistant\n<think>\nneed f\n</think>\n\n\n<tool_call>\n\
         {\"name\": \"f\", \"arguments\": {\"a\": \"<é>\"}}\n</tool_call><|im_end|>\n\
         <|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n\
         </tool_response><|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn llama3_has_headers_and_a_date() {
    let template = ChatTemplate::new(LLAMA3).unwrap();
    let messages = [
        Message::new("system", " Sys "),
        Message::new("user", "hi\n"),
    ];
    let mut asked = prompt(&messages);
    let expected = |date: &str| {
        format!(
            "<bos><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December \
             2023\nToday Date: {date}\n\nSys<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n\
             hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        )
    };
    assert_eq!(
        template.render_prompt(&asked).unwrap(),
        expected("26 Jul 2024")
    );
    asked.now = Some(1_737_331_200);
    assert_eq!(
        template.render_prompt(&asked).unwrap(),
        expected("20 Jan 2025")
    );
    let wrong = [Message::new("assistant", "x")];
    let error = template
        .render_prompt(&prompt(&wrong))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("Roles must alternate") && error.contains("chat_template:21"),
        "{error}"
    );
}

#[test]
fn probes_pass_on_all_of_them() {
    for template in [R1, QWEN3, LLAMA3, text::REASONING_TEMPLATE] {
        assert!(
            ChatTemplate::new(template)
                .unwrap()
                .probe()
                .unwrap()
                .contains("Hello")
        );
    }
}

/// What Python's Jinja prints, checked there by hand.
#[test]
fn pythonisms_work() {
    let messages = [Message::new("user", " a b ")];
    for (template, expected) in [
        (
            "{{ messages[0].content.strip().split(' ') | join('-') }}",
            "a-b",
        ),
        (
            "{{ messages[0].get('name', 'x') }}{{ messages[0].get('role') }}",
            "xuser",
        ),
        (
            "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}",
            "a1",
        ),
        (
            "{{ 'abc'.startswith('ab') }} {{ none }} {{ 'x' is defined }}",
            "True None True",
        ),
        ("{{ [1, 2, 3][::-1] }}{{ 'abc'[1:] }}", "[3, 2, 1]bc"),
        (
            "{{ {'b': [], 'a': 'é<'} | tojson(indent=2) }}",
            "{\n  \"b\": [],\n  \"a\": \"é<\"\n}",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}\
             {% endfor %}\
          {{ ns.n }}",
            "3",
        ),
        (
            "{% macro f(a, b='y') %}{{ a ~ b }}{% endmacro %}{{ f('x') }}{{ f('p', b='q') }}",
            "xypq",
        ),
        (
            "{% for x in missing %}{{ x }}{% else %}none{% endfor %}",
            "none",
        ),
        ("{% set x = missing %}{{ x is defined }}", "False"),
        (
            "{% set a, b = 1, 2 %}{{ b }}{% set c %}x{{ a }}{% endset %}{{ c }}",
            "2x1",
        ),
        (
            "{% for x in [1, 2, 3] if x != 2 %}{{ x }}{{ loop.index }}{{ loop.last }}{% endfor %}",
            "11False32True",
        ),
        (
            "{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}",
            "1",
        ),
        (
            "{{ 'a,b' | replace(',', ';') | upper }}{{ 'a\nb' | indent(2) }}",
            "A;Ba\n  b",
        ),
    ] {
        let template = ChatTemplate::new(template).unwrap_or_else(|error| panic!("{error}"));
        let text = template.render(&messages, false, "", "");
        assert_eq!(text.unwrap_or_else(|error| error.to_string()), expected);
    }
}
