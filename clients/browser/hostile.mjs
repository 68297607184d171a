// What a model may say to the page that shows it: fed to the page's own renderer, in the page.

import assert from "node:assert/strict";

const HOSTILE = [
  "<script>window.hit = 1</script>",
  "<img src=x onerror=\"window.hit = 2\">",
  "<svg onload=window.hit=3><iframe srcdoc='<script>top.hit=4</script>'></iframe>",
  "[click](javascript:window.hit=5)",
  "[click]( javascript:window.hit=5) [x](JaVaScRiPt:window.hit=5) [y](&#106;avascript:hit())",
  "[z](data:text/html,<script>hit()</script>) [v](vbscript:hit) [f](file:///etc/passwd)",
  "![pixel](https://example.org/pixel.png \"<b>\")",
  "<https://example.org/\" onmouseover=\"window.hit=6>",
  "```html\n<script>window.hit = 7</script>\n```",
  "```\" onclick=\"window.hit=8\nx\n```",
  "| <b>a</b> | <script>window.hit=9</script> |\n|---|---|\n| <img onerror=x src=y> | `<i>` |",
  "> <style>body { display: none }</style>",
  "1. <a href='javascript:window.hit=10'>x</a>",
  "# <base href='https://evil.example/'>",
];

// Shapes that make a careless parser quadratic: each is repeated to about a megabyte.
const SHAPES = [
  "a", "a ", "*", "* ", "*a ", "**a* ", "_a_", "[", "[a](", "![", "](", "[a](b", "`", "`a``b",
  "<", "<http://", "http://a", "http://.", "\\", "> ", ">", "- ", "|", "|a", "~~a", "#", "# a\n",
  "\ta\n", "a\n\n", "- a\n", "  - a\n", "> a\n", "```\n", "~~~\n", "|a|b|\n", "|-|-|\n",
  "***a** b*", "***\n", "1. a\n", "\u{1F600}", "\r\n", "- - ", "a|b\n-|-\n",
];

export function hostileChecks(chrome) {
  return [
    ["hostile output stays text", () => staysText(chrome)],
    ["Markdown is shown as meant", () => shownAsMeant(chrome)],
    ["a streamed text looks like the whole one", () => streamedEqualsWhole(chrome)],
    ["a megabyte of anything is quick", () => megabyteIsQuick(chrome)],
    ["a megabyte streams without freezing the page", () => megabyteStreams(chrome)],
  ];
}

async function staysText(chrome) {
  const seen = await chrome.run(async (texts) => {
    const { renderMarkdown } = await import("/page/markdown.js");
    const root = renderMarkdown(texts.join("\n\n"));
    document.querySelector("#messages").append(root);
    await new Promise((resolve) => setTimeout(resolve, 200));
    const nodes = [...root.querySelectorAll("*")];
    const allowed = new Set(["href", "rel", "target", "class", "tabindex", "role", "aria-label",
      "start", "type"]);
    const found = {
      tags: [...new Set(nodes.map((node) => node.localName))],
      attributes: nodes.flatMap((node) => node.getAttributeNames()).filter((n) => !allowed.has(n)),
      links: [...root.querySelectorAll("a")].map((a) => [a.getAttribute("href"), a.rel]),
      text: root.textContent,
      hit: window.hit,
    };
    root.remove();
    return found;
  }, HOSTILE);
  assert.equal(seen.hit, undefined, "nothing ran");
  assert.deepEqual(seen.attributes, [], "no attribute comes from the text");
  const known = ["a", "blockquote", "button", "code", "div", "h3", "li", "ol", "p", "pre", "span",
    "table", "tbody", "td", "th", "thead", "tr"];
  assert.deepEqual(seen.tags.filter((tag) => !known.includes(tag)), [], "no element comes from it");
  for (const [href, rel] of seen.links) {
    assert.match(href, /^https:\/\/[a-z.]+\/[a-z.]*$/);
    assert.match(rel, /noopener/);
  }
  for (const text of ["<script>window.hit = 1</script>", "<img src=x onerror=", "javascript:"]) {
    assert.ok(seen.text.includes(text), `${text} is shown as text`);
  }
}

// Expected structures were written by hand from the CommonMark and GFM descriptions.
const MEANT = [
  ["**b** *i* ***bi*** ~~d~~ `c`",
    "p(strong(b) em(i) strong(em(bi)) del(d) code(c))"],
  ["snake_case_name 2*3*4 a * b * c", "p(snake_case_name 2*3*4 a * b * c)"],
  ["**open *and [left](", "p(**open *and [left]()"],
  ["***a** b*", "p(em(strong(a) b))"],
  ["**bold *both***", "p(strong(bold em(both)))"],
  ["`` a ` b `` \\*c\\*", "p(code(a ` b) *c*)"],
  ["# One\n## Two", "h3(One)h4(Two)"],
  ["a\n***\nb", "p(a)hr()p(b)"],
  ["- a\n  - b\n- c", "ul(li(p(a)ul(li(p(b))))li(p(c)))"],
  ["3. a\n4. b", "ol(li(p(a))li(p(b)))"],
  ["In\n1984. x", "p(In\n1984. x)"],
  ["> a\n> > b", "blockquote(p(a)blockquote(p(b)))"],
  ["[t](https://x.org/a_(b))", "p(a(t))"],
  ["see https://x.org/a.", "p(see a(https://x.org/a).)"],
  ["|a|b|\n|-|:-:|\n|1|\\||", "div(table(thead(tr(th(a)th(b)))tbody(tr(td(1)td(|)))))"],
  ["a|b\nc|d", "p(a|b\nc|d)"],
  ["\\(x_1\\) \\[y\\]", "p(\\(x_1\\) \\[y\\])"],
  ["69 + 64 - 4 * 20", "p(69 + 64 - 4 * 20)"],
];

async function shownAsMeant(chrome) {
  const outlines = await chrome.run(async (texts) => {
    const { renderMarkdown } = await import("/page/markdown.js");
    const outline = (node) => node.nodeType === 3 ? node.data :
      `${node.localName}(${[...node.childNodes].map(outline).join("")})`;
    return texts.map((text) => [...renderMarkdown(text).childNodes].map(outline).join(""));
  }, MEANT.map(([text]) => text));
  MEANT.forEach(([text, meant], at) => assert.equal(outlines[at], meant, JSON.stringify(text)));
}

async function streamedEqualsWhole(chrome) {
  const seed = Number(process.env.SEED ?? Date.now() % 1_000_000);
  const different = await chrome.run(async (pieces, seed) => {
    const { MarkdownView, renderMarkdown } = await import("/page/markdown.js");
    let state = seed;
    const below = (n) => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.floor((state / 2 ** 32) * n);
    };
    for (let round = 0; round < 400; round += 1) {
      let text = "";
      for (let at = below(30); at >= 0; at -= 1) text += pieces[below(pieces.length)];
      const root = document.createElement("div");
      const view = new MarkdownView(root);
      for (let at = 0; at < text.length; at += 1 + below(3)) view.update(text.slice(0, at));
      view.update(text, true);
      if (root.innerHTML !== renderMarkdown(text).innerHTML) return text;
    }
    return null;
  }, [...SHAPES, "\n", "\n", "\n\n", "text", "---", "|a|b|\n|-|-|\n", "```js\n"], seed);
  assert.equal(different, null, `seed ${seed}: ${JSON.stringify(different)}`);
}

// The bound is generous, since it must tell linear from quadratic, not fast from slow: a
// quadratic pass over a megabyte takes minutes.
async function megabyteIsQuick(chrome) {
  for (const shape of SHAPES) {
    const { parsed, laidOut } = await chrome.run(async (shape) => {
      const { renderMarkdown } = await import("/page/markdown.js");
      const text = shape.repeat(Math.ceil(1_000_000 / shape.length));
      const start = performance.now();
      const root = renderMarkdown(text);
      const parsed = performance.now() - start;
      document.querySelector("#messages").append(root);
      root.getBoundingClientRect();
      const laidOut = performance.now() - start - parsed;
      root.remove();
      return { parsed, laidOut };
    }, shape);
    const words = `${Math.round(parsed)} ms to build, ${Math.round(laidOut)} ms to lay out`;
    if (process.env.VERBOSE) console.log(JSON.stringify(shape), words);
    assert.ok(parsed + laidOut < 10_000, `a megabyte of ${JSON.stringify(shape)}: ${words}`);
  }
}

// One line without an end, and then a table, both a megabyte, as a stream would bring them; the
// page must go on drawing frames meanwhile.
async function megabyteStreams(chrome) {
  const row = `|${" cell |".repeat(10)}\n`;
  const table = row + `|${"-|".repeat(10)}\n` + row.repeat(14_000);
  for (const [name, text] of [["line", "word ".repeat(200_000)], ["table", table]]) {
    const frames = await chrome.run(async (text) => {
      const real = window.fetch;
      window.fetch = async () => {
        window.fetch = real;
        const encoder = new TextEncoder();
        let at = 0;
        const pull = async (controller) => {
          if (at >= text.length) {
            controller.enqueue(encoder.encode("data: [DONE]\n\n"));
            return controller.close();
          }
          const content = text.slice(at, at + 4000);
          at += 4000;
          const event = { choices: [{ delta: { content } }] };
          controller.enqueue(encoder.encode(`data: ${JSON.stringify(event)}\n\n`));
          await new Promise((resolve) => setTimeout(resolve, 5));
        };
        return new Response(new ReadableStream({ pull }));
      };
      document.querySelector("#new").click();
      await new Promise((resolve) => setTimeout(resolve, 50));
      const prompt = document.querySelector("#prompt");
      prompt.value = "stream";
      document.querySelector("#composer").requestSubmit();
      let count = 0;
      let longest = 0;
      let before = performance.now();
      const start = before;
      while (document.querySelector("#send").hidden) {
        await new Promise((resolve) => requestAnimationFrame(resolve));
        longest = Math.max(longest, performance.now() - before);
        before = performance.now();
        count += 1;
      }
      const kept = document.querySelector(".assistant .md").textContent.length;
      return { count, longest, took: performance.now() - start, kept };
    }, text);
    if (process.env.VERBOSE) console.log(name, frames);
    assert.ok(frames.kept > 500_000, `${name}: all of it is shown, not ${frames.kept}`);
    assert.ok(frames.longest < 5_000, `${name}: a frame took ${frames.longest} ms`);
    assert.ok(frames.count > 20, `${name}: only ${frames.count} frames in ${frames.took} ms`);
  }
}
