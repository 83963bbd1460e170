// What is copied from an example is its code: without the prompts, and without what it prints.
const code = (block) =>
  block.textContent
    .split("\n")
    .filter((line) => /^(>>>|\.\.\.)( |$)/.test(line))
    .map((line) => line.slice(4))
    .join("\n");

addEventListener(
  "click",
  (event) => {
    const button = event.target.closest(".md-clipboard, .md-code__button");
    const block = button?.closest(".highlight")?.querySelector("code");
    if (block?.textContent.startsWith(">>>")) button.dataset.clipboardText = code(block);
  },
  true,
);
