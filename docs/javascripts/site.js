// What Markdown cannot do: formulas, and where lines may break.
document.addEventListener("DOMContentLoaded", () => {
  // Formulas arrive as \(...\) and \[...\] inside elements of the class "arithmatex".
  for (const formula of document.querySelectorAll(".arithmatex")) {
    const source = formula.textContent.trim();
    const options = { displayMode: source.startsWith("\\["), throwOnError: false };
    katex.render(source.slice(2, -2), formula, options);
  }
  // Long names break after a dot, a slash or a bracket, never inside a word.
  for (const code of document.querySelectorAll(".md-typeset :not(pre) > code")) {
    if (code.childElementCount > 0) continue;
    const parts = code.textContent.split(/(?<=[./,(=\]])(?=\S)/);
    const withBreaks = parts.flatMap((part) => [document.createElement("wbr"), part]);
    code.replaceChildren(...withBreaks.slice(1));
  }
  // A number stays whole, and with its spread or its unit.
  const content = document.querySelector(".md-content");
  const texts = document.createTreeWalker(content, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode;
    if (text.parentElement.closest("code")) continue;
    const kept = text.data.replaceAll(/ ± |(?<=\d) (?=%|\d{3}\b)/g, (gap) =>
      gap.replaceAll(" ", "\u00a0"),
    );
    if (kept !== text.data) text.data = kept;
  }
});
