// Formulas arrive in <span class="arithmatex">\(...\)</span> and <div class="arithmatex">\[...\]</div>;
// cells of the notebooks are left to MathJax as they are.
window.MathJax = {
  tex: {
    inlineMath: [["\\(", "\\)"]],
    displayMath: [["\\[", "\\]"]],
    processEscapes: true,
    processEnvironments: true,
  },
  options: {
    ignoreHtmlClass: ".*|",
    processHtmlClass: "arithmatex",
  },
};
